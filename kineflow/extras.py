"""Which extra brings which package, and the one sentence said when it is not installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from kineflow.interface import KineflowError

EXTRA_OF = {
    **dict.fromkeys(
        ("torch", "zarr", "numcodecs", "google_crc32c", "safetensors", "tensorboard", "huggingface_hub", "rich", "simplejpeg"),
        "train",
    ),
    **dict.fromkeys(("gymnasium", "gym_pusht", "pymunk", "pygame", "cv2", "shapely", "mujoco", "scipy"), "sim"),
    **dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"), "export"),
    **dict.fromkeys(("av", "PIL"), "report"),
    **dict.fromkeys(("torchvision", "timm", "open_clip"), "vision"),
    "h5py": "hdf5",
    "pyarrow": "lerobot",
    **dict.fromkeys(("mcap", "rosbags", "lz4", "zstandard"), "ros"),
    "obstore": "remote",
    "icechunk": "versioned",
    **dict.fromkeys(("websockets", "msgpack"), "serve"),
    "ray": "scale",
    "foxglove": "live",
    "rerun": "rerun",
}


def require(module: str, purpose: str) -> Any:
    """Import `module`, needed for `purpose` ("to read HDF5").

    Raises:
        KineflowError: it is not installed; names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise KineflowError(f"the package '{error.name}' is needed {purpose}: pip install 'kineflow[{extra}]'") from None
