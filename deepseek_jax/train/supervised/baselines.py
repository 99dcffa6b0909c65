"""Baselines for a labelled set: the simple model that anybody would try first, on the same splits."""

import warnings

import numpy as np

from deepseek_jax.data.sets.dataset import Dataset, as_unit
from deepseek_jax.data.sets.scaling import Scaling, moments
from deepseek_jax.data.sets.series import seasonal_naive
from deepseek_jax.tasks.scores import of_numbers

MOST_NUMBERS = 20_000_000  # numbers in the training inputs; with more, fitting would take minutes


def scores(dataset: Dataset) -> dict[str, float]:
    """Test scores by baseline and metric, such as "ridge regression, r2"; {} for boxes or without test records."""
    if dataset.kind == "boxes" or not len(dataset.splits["test"]["ids"]):
        return {}
    naive = _forecast(dataset) if dataset.season else {}
    inputs = _words(dataset) if dataset.input == "text" else _numbers(dataset)
    if inputs is None:
        return naive
    fit = _logistic if dataset.kind == "classes" else _ridge
    what = "TF-IDF + " if dataset.input == "text" else ""
    return naive | {what + name: score for name, score in fit(dataset, *inputs).items()}


def _words(dataset: Dataset):
    """TF-IDF features of the training and test texts; None if the texts hold nothing but single characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    train, test = (dataset.splits[split]["texts"] for split in ("train", "test"))
    words = TfidfVectorizer(sublinear_tf=True)
    if not any(map(words.build_analyzer(), train)):
        return None
    return words.fit_transform(train), words.transform(test)


def _numbers(dataset: Dataset):
    """Training and test inputs as the network sees them, one row per record; None if there are too many.

    Columns that the network sees unscaled are standardised here: logistic regression would not converge otherwise.
    """
    train, test = (dataset.splits[split]["inputs"] for split in ("train", "test"))
    if train.size > MOST_NUMBERS:
        return None
    scaling = dataset.scaling
    if dataset.input != "image" and not scaling.input_mean:
        scaling = Scaling(*moments(train))
    return tuple(scaling.inputs(as_unit(part)).reshape(len(part), -1) for part in (train, test))


def _logistic(dataset: Dataset, x_train, x_test) -> dict[str, float]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():  # 200 iterations are enough for a baseline, even if it has not quite converged
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(max_iter=200).fit(x_train, dataset.splits["train"]["labels"])
    right = fitted.predict(x_test) == dataset.splits["test"]["labels"]
    return {"logistic regression, accuracy": float(right.mean())}


def _ridge(dataset: Dataset, x_train, x_test) -> dict[str, float]:
    from sklearn.linear_model import Ridge, RidgeCV

    train, test = dataset.splits["train"], dataset.splits["test"]
    # On texts the ridge penalty is not tuned: RidgeCV would need a matrix of all pairs of texts.
    ridge = Ridge() if dataset.input == "text" else RidgeCV(np.logspace(-3, 3, 13))
    fitted = ridge.fit(x_train, dataset.scaling.targets(train["targets"]))
    predicted = dataset.scaling.undo_targets(fitted.predict(x_test).reshape(test["targets"].shape))
    found = of_numbers(predicted, test["targets"])
    return {f"ridge regression, {name}": found[name] for name in ("mae", "r2")}


def _forecast(dataset: Dataset) -> dict[str, float]:
    test = dataset.splits["test"]
    found = of_numbers(seasonal_naive(dataset, test["inputs"]), test["targets"])
    return {f"seasonal naive, {name}": found[name] for name in ("mae", "r2")}
