"""Edits of a study that differ only in what their factory was given."""


def scaled(by, how=None):
    def edit(experiment, params, buffers):
        return experiment, how(params, by), buffers

    return edit


def times(factor):
    def through(tree):
        return {key: through(leaf) if isinstance(leaf, dict) else leaf * factor for key, leaf in tree.items()}

    return through


def by_default(factor):
    def edit(experiment, params, buffers, *, by=factor):
        return experiment, params * by, buffers

    return edit
