"""Worker processes work, also when the parent has used OpenCV's threads before."""

import subprocess
import sys

import cv2
import pytest

from ovd_d2.workers import process_pool

# A process of its own: where forked workers wait for ever, the test fails instead of hanging.
SCRIPT = """
import cv2, numpy as np
from ovd_d2.workers import process_pool

def blurred(value):
    cv2.setNumThreads(2)  # what asks for OpenCV's threads
    return int(cv2.GaussianBlur(np.full((600, 600, 3), value, np.uint8), (9, 9), 2)[300, 300, 0])

cv2.setNumThreads(4)
for _ in range(20):
    cv2.GaussianBlur(np.zeros((2000, 2000, 3), np.uint8), (9, 9), 2)
    with process_pool(2) as pool:
        assert list(pool.map(blurred, range(8))) == list(range(8))
assert cv2.getNumThreads() == 4
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_forked_workers_do_not_wait_for_opencv_threads_of_the_parent():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def test_opencv_has_its_threads_back_after_a_failure():
    threads = cv2.getNumThreads()
    with pytest.raises(ZeroDivisionError), process_pool(1) as pool:
        list(pool.map(divmod, [1], [0]))
    assert cv2.getNumThreads() == threads


def test_results_come_in_order():
    with process_pool(2) as pool:
        assert list(pool.map(abs, range(-9, 0))) == list(range(9, 0, -1))
