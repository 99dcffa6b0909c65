"""Labels that contradict a confident model fitted without the record (confident learning, arXiv:1911.00068).

N records  K classes  D numbers per record
"""

import numpy as np

from deepseek_jax.data.quality.all_records import AllRecords
from deepseek_jax.data.quality.features import phrase_weights
from deepseek_jax.data.quality.finding import Finding

FOLDS = 5
# The model must avoid this share of the errors of always answering the largest class, or its doubts do not count.  In
# tables of two equal classes without a wrong label, a model that avoided 16% doubted 41% of the records "surely".
AVOIDED = 0.2
FEWEST = 10  # records of a class, so that each fold leaves enough to learn it from


def doubts(records: AllRecords, vectors_ND: np.ndarray) -> Finding | None:
    """Training records that the model classifies differently, least believed label first; None without classes.

    The label errors that confident learning (cleanlab) finds are proposed for leaving out.  The model is fitted on
    training records alone, so that no held-out label influences training.  If it learns hardly anything, its doubts are
    left to the user to judge (`certain` is false).
    """
    if records.groups is None:
        return None
    features = phrase_weights(records.inputs, records.train) if records.input == "text" else vectors_ND
    # Leaves out classes that are too small, and renumbers the others without gaps, as cleanlab requires.
    counts = np.bincount(records.groups[records.train], minlength=len(records.group_names))
    (places,) = np.nonzero(records.train & (counts >= FEWEST)[records.groups])
    classes, labels = np.unique(records.groups[places], return_inverse=True)
    small = len(counts) - len(classes)
    beside = f"; {small:,} classes of fewer than {FEWEST} training records were not checked" if small else ""
    if len(classes) < 2:
        return Finding("Label doubts", f"not looked for{beside}")
    least = int(counts[classes].min())
    ranked, errors, answers = find_doubts(
        features[places], labels, classifier(records.input, least - -(-least // FOLDS))
    )
    reasons = {
        int(
            places[row]
        ): f"labelled {records.group_of(places[row])}, looks like {records.group_names[classes[answers[row]]]}"
        for row in ranked
    }
    listed = [(place, f"{records.ids[place]} {reason}") for place, reason in reasons.items()]
    wrong = {int(places[row]): reasons[int(places[row])] for row in ranked if row in errors}
    right, largest = (answers == labels).mean(), np.bincount(labels).max() / len(labels)
    learned = right - largest >= AVOIDED * (1 - largest)
    if not learned:
        beside += f"; it answers {right:.0%} right, and {largest:.0%} are of the largest class: its doubts say little"
    return Finding(
        title="Label doubts",
        sentence=f"{len(reasons):,} of {len(places):,} training records have a label that a model fitted without "
        f"them does not predict, {len(wrong):,} of them so clearly that the label is doubtful{beside}",
        examples={"": listed} if listed else {},
        doubtful=wrong,
        certain=bool(learned),
    )


def find_doubts(features, labels: np.ndarray, model) -> tuple[np.ndarray, set[int], np.ndarray]:
    """(rows whose out-of-fold answer is not their label, least believed first; rows that are errors; answers [N])."""
    from cleanlab.filter import find_label_issues
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    chance_NK = cross_val_predict(model, features, labels, cv=folds, method="predict_proba")
    answers = chance_NK.argmax(1)
    believed = chance_NK[np.arange(len(labels)), labels]
    ranked = np.argsort(believed, kind="stable")
    # Prunes as many per class as are estimated to be wrong: of the paper's rules, the best at finding flipped digits.
    settings = {"filter_by": "prune_by_class", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    errors = find_label_issues(labels, chance_NK, **settings)
    return ranked[(answers != labels)[ranked]], set(errors.tolist()), answers


def classifier(kind: str, fewest: int):
    """A classifier that is fitted in seconds; each class must have at least `fewest` records in a fold's training part.

    It averages the probabilities of two models that err differently.  For texts: logistic regression and naive Bayes.
    Otherwise: nearest neighbours, and a normal distribution per class, in as many of the leading dimensions (in which
    records differ most) as `fewest` records determine.
    """
    from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
    from sklearn.ensemble import VotingClassifier
    from sklearn.linear_model import SGDClassifier
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    if kind == "text":
        regression = SGDClassifier(loss="log_loss", alpha=3e-5, random_state=0)
        models = [("regression", regression), ("bayes", MultinomialNB(alpha=0.02))]
    else:
        neighbours = KNeighborsClassifier(10, weights="distance")
        first = FunctionTransformer(lambda vectors_ND: vectors_ND[:, : fewest - 1])
        normal = make_pipeline(first, QuadraticDiscriminantAnalysis(reg_param=0.01))
        models = [("neighbours", neighbours), ("normal", normal)]
    return VotingClassifier(models, voting="soft")
