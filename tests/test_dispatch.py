"""Choosing a backend, and settings."""

import threading
from dataclasses import dataclass, replace

import pytest

import vicinal
from tests.errors import fails
from vicinal import UnsupportedProblem, settings
from vicinal.catalog import named
from vicinal.dispatch import choose, first, refusals


@dataclass
class Stub:
    name: str
    reason: str | None

    def refusal(self, problem):
        return self.reason


PROBLEM = named("odd_1d").problem
PICKY, WILLING, OTHER = Stub("picky", "it is too odd"), Stub("willing", None), Stub("other", None)


def test_first_that_does_not_refuse():
    assert choose((PICKY, WILLING, OTHER), PROBLEM) is WILLING
    assert choose((PICKY, WILLING, OTHER), PROBLEM, "other") is OTHER


def test_first_is_what_choose_finds():
    table = (PICKY, WILLING, OTHER)
    assert first(table, PROBLEM) is WILLING
    assert first(table, PROBLEM, "other") is OTHER
    assert first(table, PROBLEM, "picky") is first(table, PROBLEM, "fast") is first((PICKY,), PROBLEM) is None


def test_refusals_of_all_are_in_the_error():
    with pytest.raises(UnsupportedProblem) as caught:
        choose((PICKY, Stub("shy", "not today")), PROBLEM)
    assert str(caught.value) == f"no backend can run {PROBLEM}\n  picky  it is too odd\n  shy    not today"
    assert isinstance(caught.value, NotImplementedError)


def test_backend_asked_for_refuses():
    with pytest.raises(UnsupportedProblem, match="backend picky was asked for and cannot run") as caught:
        choose((PICKY, WILLING), PROBLEM, "picky")
    assert "it is too odd" in str(caught.value)
    assert "willing" not in str(caught.value)


def test_refusals_of_every_backend():
    assert refusals((PICKY, WILLING), PROBLEM) == {"picky": "it is too odd", "willing": None}


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        ("odd_1d", "problem is of type str; pass a vicinal.Problem"),
        (replace(PROBLEM, axes=list(PROBLEM.axes)), "axes is of type list; pass a tuple of vicinal.Axis"),
        (replace(PROBLEM, axes=(9,)), "axis 0 is of type int; pass a vicinal.Axis"),
        (replace(PROBLEM, dtype=float), "dtype is of type type; pass its name, such as float16 or cuda"),
    ],
)
def test_refusals_are_of_a_problem(problem, message):
    fails(TypeError, message, refusals, (PICKY, WILLING), problem)


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend 'fast' is unknown; pass None or one of picky, willing"):
        choose((PICKY, WILLING), PROBLEM, "fast")


@pytest.fixture
def environment(monkeypatch):
    """Sets variables as they would stand at the start of a process."""

    def set_all(**variables):
        for name in ("VICINAL_BACKEND", "VICINAL_TF32", "VICINAL_WORKSPACE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    def forget():
        settings._environment.cache_clear()
        settings.workspace.cache_clear()

    yield set_all
    monkeypatch.undo()
    forget()


def test_using_nests_and_ends(environment):
    environment()
    assert settings.current() == settings.Settings()
    with vicinal.using(backend="blocked"):
        with vicinal.using(tf32=True) as inner:
            assert inner == settings.current() == settings.Settings("blocked", True)
        assert settings.current() == settings.Settings("blocked", False)
    assert settings.current().backend is None


def test_using_is_of_its_thread(environment):
    environment()
    seen = []
    with vicinal.using(backend="reference"):
        thread = threading.Thread(target=lambda: seen.append(settings.current().backend))
        thread.start()
        thread.join()
    assert seen == [None]


def test_environment(environment):
    environment(VICINAL_BACKEND="reference", VICINAL_TF32="1")
    assert settings.current() == settings.Settings("reference", True)
    with vicinal.using(backend="full"):
        assert settings.current().backend == "full"
    environment(VICINAL_TF32="yes")
    with pytest.raises(ValueError, match="VICINAL_TF32 is 'yes'; set it to 0 or 1"):
        settings.current()


def test_workspace(environment):
    for variables, wanted in (
        ({}, True),
        ({"VICINAL_WORKSPACE": "1"}, True),
        ({"VICINAL_WORKSPACE": "0"}, False),
    ):
        environment(**variables)
        assert settings.workspace() is wanted
    environment(VICINAL_WORKSPACE="no")
    with pytest.raises(ValueError, match="VICINAL_WORKSPACE is 'no'; set it to 0 or 1"):
        settings.workspace()
    # One variable says nothing of the others.
    assert settings.current() == settings.Settings()


def test_using_rejects_wrong_types():
    with pytest.raises(TypeError, match="backend is 3"), vicinal.using(backend=3):
        pass
    with pytest.raises(TypeError, match="tf32 is 'on'"), vicinal.using(tf32="on"):
        pass
