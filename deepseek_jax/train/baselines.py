"""What a network on a labelled set stands beside: the plain model that anybody would try first, on the same splits."""

import numpy as np

from deepseek_jax.data.sets.dataset import Dataset, as_unit
from deepseek_jax.data.sets.series import seasonal_naive
from deepseek_jax.tasks import scores

MOST_NUMBERS = 20_000_000  # of the training inputs: beyond, logistic regression would take minutes


def of(dataset: Dataset) -> dict[str, float]:
    """Scores on the test split, by a name that says which rival and which score; {} where there is none."""
    if dataset.kind == "boxes" or not len(dataset.splits["test"]["ids"]):
        return {}
    if dataset.kind == "classes":
        return _classes(dataset)
    return (_forecast(dataset) if dataset.season else {}) | _ridge(dataset)


def _classes(dataset: Dataset) -> dict[str, float]:
    """Logistic regression on the inputs, of text on TF-IDF of its words."""
    from sklearn.linear_model import LogisticRegression

    train, test = dataset.splits["train"], dataset.splits["test"]
    if dataset.input == "text":
        from sklearn.feature_extraction.text import TfidfVectorizer

        words = TfidfVectorizer(sublinear_tf=True).fit(train["texts"])
        x_train, x_test, what = words.transform(train["texts"]), words.transform(test["texts"]), "TF-IDF + "
    else:
        if train["inputs"].size > MOST_NUMBERS:
            return {}
        flat = [dataset.scaling.inputs(as_unit(part["inputs"])).reshape(len(part["ids"]), -1) for part in (train, test)]
        (x_train, x_test), what = flat, ""
    fitted = LogisticRegression(max_iter=200).fit(x_train, train["labels"])
    accuracy = float((fitted.predict(x_test) == test["labels"]).mean())
    return {f"{what}logistic regression, accuracy": accuracy}


def _ridge(dataset: Dataset) -> dict[str, float]:
    from sklearn.linear_model import RidgeCV

    train, test = dataset.splits["train"], dataset.splits["test"]
    flat = [dataset.scaling.inputs(part["inputs"]).reshape(len(part["ids"]), -1) for part in (train, test)]
    fitted = RidgeCV(np.logspace(-3, 3, 13)).fit(flat[0], dataset.scaling.targets(train["targets"]))
    predicted = dataset.scaling.undo_targets(fitted.predict(flat[1]).reshape(test["targets"].shape))
    found = scores.of_numbers(predicted, test["targets"])
    return {f"ridge regression, {name}": found[name] for name in ("mae", "r2")}


def _forecast(dataset: Dataset) -> dict[str, float]:
    test = dataset.splits["test"]
    found = scores.of_numbers(seasonal_naive(dataset, test["inputs"]), test["targets"])
    return {f"seasonal naive, {name}": found[name] for name in ("mae", "r2")}
