import pytest
import torch

from jetkern.ops import dispatch
from tests.ops.helpers import triton_device


@pytest.fixture
def launched(monkeypatch):
    """``launched(function, ...)`` calls it with its tensors where Triton's kernels run, and has the
    kernels taken."""

    def there(value):
        if isinstance(value, (list, tuple)):
            return type(value)(map(there, value))
        return value.to(triton_device()) if isinstance(value, torch.Tensor) else value

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            row = dispatch.TABLE["triton"]._replace(devices=(triton_device(),))
            patch.setitem(dispatch.TABLE, "triton", row)
            found = function(*there(arguments))
        return tuple(f.cpu() for f in found) if isinstance(found, tuple) else found.cpu()

    return call
