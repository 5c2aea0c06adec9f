"""Shared by all tests: no skips in CI, Ctrl-C, hypothesis profiles, the fixture `threads`."""

import os
import signal

import pytest
from hypothesis import settings

import minicnn as mc

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some tests send Ctrl-C

settings.register_profile("local", deadline=None, max_examples=50)  # the first call may compile
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, print_blob=True)
in_ci = os.environ.get("CI", "").lower() == "true"
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if in_ci else "local"))


def pytest_addoption(parser):
    parser.addoption(
        "--forbid-skips", action="store_true", help="fail where a test was skipped or xfailed"
    )


def pytest_terminal_summary(terminalreporter, config):
    if count := _not_run(config):
        terminalreporter.write_line(f"--forbid-skips: {count} skipped or xfailed", red=True)


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and _not_run(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _not_run(config):
    """Count skipped and expected failures; 0 without --forbid-skips."""
    if not config.getoption("--forbid-skips"):
        return 0
    stats = config.pluginmanager.get_plugin("terminalreporter").stats
    return len(stats.get("skipped", [])) + len(stats.get("xfailed", []))


@pytest.fixture(params=[1, 2])
def threads(request):
    """Run the test once with each number of threads."""
    before = mc.get_num_threads()
    mc.set_num_threads(request.param)
    yield request.param
    mc.set_num_threads(before)
