"""Test settings: Hypothesis profiles, and which kernel tests belong to this process."""

import os
import shutil

from hypothesis import HealthCheck, settings

# Triton reads TRITON_INTERPRET once, when it is imported, so interpreted kernels have a process of
# their own (`make test` starts both): each process collects only its own files.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED else ["test_kernels_interpret*.py"]
if shutil.which("chromium") is None:
    collect_ignore_glob.append("test_browser.py")

settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
)
settings.register_profile("explore", settings.get_profile("default"), derandomize=False)
settings.load_profile("default")
