"""`unordered` finds collectives that may run beside a loop or conditional with such; `after` puts them in order."""

from tests.parallel import unordered_programs


def test_unordered_collectives_are_found_and_after_puts_them_in_order(on_devices):
    found = {name: len(pairs) for name, pairs in on_devices(2, unordered_programs.found).items()}
    assert {name for name, count in found.items() if count} == {"two loops", "loop and conditional"}, found
