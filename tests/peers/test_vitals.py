from peers.vitals import PLAUSIBLE, read_vitals


def test_machine_says_what_it_has_and_heat_only_where_a_sensor_is_believable() -> None:
    vitals = read_vitals(free=5)
    assert vitals.free == 5
    assert vitals.own > 10_000_000  # this process holds a Python
    low, high = PLAUSIBLE
    assert vitals.temperature is None or low <= vitals.temperature <= high
