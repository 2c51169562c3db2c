"""Choose MuJoCo's OpenGL backend on a machine without a display."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import sys
from ctypes.util import find_library
from importlib.util import find_spec

logger = logging.getLogger(__name__)


def set_default_gl() -> None:
    """Set MUJOCO_GL on headless Linux if it is unset; must run before mujoco or dm_control is imported.

    Unset, both fall back to GLFW, which needs a display. EGL where it has a device, else OSMesa, else "disabled":
    dm_control refuses to import at all when the named backend does not work, even for a run that never renders.
    """
    if sys.platform != "linux" or "mujoco" in sys.modules:
        return
    if "MUJOCO_GL" not in os.environ and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        backend = "egl" if _egl_has_device() else "osmesa" if find_library("OSMesa") else "disabled"
        os.environ["MUJOCO_GL"] = backend
        logger.info("no display: MUJOCO_GL=%s", backend)
    if os.environ.get("MUJOCO_GL", "").lower() in ("egl", "osmesa"):
        _load_triton()


def _load_triton() -> None:
    """Load triton, which PyTorch imports in training, while Mesa is not loaded: both bring LLVM.

    With Mesa's in the process, loading that of triton 3.7 ends it with a segmentation fault; the other order works.
    """
    if find_spec("triton") is not None:
        with contextlib.suppress(Exception):  # PyTorch will say what is wrong with it
            import triton  # noqa: F401


def _egl_has_device() -> bool:
    """Ask libEGL for its devices; a library without a driver has none."""
    path = find_library("EGL")
    if path is None:
        return False
    try:
        egl = ctypes.CDLL(path)
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    except (OSError, AttributeError):
        return False
    if not address:
        return False
    signature = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))
    count = ctypes.c_int(0)
    return bool(signature(address)(0, None, ctypes.byref(count))) and count.value > 0
