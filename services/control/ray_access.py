"""Whether a Ray cluster that runs already may be joined: asked of its head directly, before Ray is.

Ray itself would try for 20 seconds or minutes, and never says "token". It must not start anything. Invariants: it ends
within seconds; a token is told by the name of its setting, never by its value.
"""

import os
from pathlib import Path

import grpc

from services.contracts.errors import UserError
from services.transport.addresses import is_loopback

_TIMEOUT_S = 5.0
_IS_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


def check_access(address: str, *, allow_unauthenticated: bool) -> None:
    """Ask the head at HOST:PORT whether it takes this process's token, or asks for none where that is allowed.

    Raises:
        UserError: naming the setting at fault.
    """
    if _admits(address, None):
        if not allow_unauthenticated and not is_loopback(address.rpartition(":")[0]):
            raise UserError(
                f"the Ray cluster at {address} asks for no token, so that whoever reaches it can run code there; start "
                "it with RAY_AUTH_MODE=token, or set cluster.allow_unauthenticated: true if its network is trusted"
            )
        # A token that lies about for other clusters would have this process refuse the calls of this one.
        if os.environ.setdefault("RAY_AUTH_MODE", "disabled") != "disabled":
            raise UserError(f"RAY_AUTH_MODE is set, and the Ray cluster at {address} asks for no token; unset it")
        return
    setting, token = _token()
    # Ray reads the mode when it is imported, so that it is too late to set it here.
    if not token or os.environ.get("RAY_AUTH_MODE") != "token":
        missing = "RAY_AUTH_MODE is not 'token'" if token else f"{setting} has none"
        raise UserError(
            f"the Ray cluster at {address} asks for a token, and {missing}; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN to the cluster's token or RAY_AUTH_TOKEN_PATH to a file that holds it"
        )
    if not _admits(address, token):
        raise UserError(f"the Ray cluster at {address} refuses the token in {setting}; set it to the cluster's own")


def _admits(address: str, token: str | None) -> bool:
    """Raises `UserError` when no Ray answers."""
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_IS_ALIVE)  # An empty message either way, so that Ray's own protocol stays out.
        try:
            ask(b"", timeout=_TIMEOUT_S, metadata=[("authorization", f"Bearer {token}")] if token else [])
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                return False
            raise UserError(
                f"no Ray cluster answers at cluster.address={address!r}: {error.code().name}, {error.details()}"
            ) from error
    return True


def _token() -> tuple[str, str]:
    """Where Ray finds this process's token, and the token; empty where there is none."""
    if token := os.environ.get("RAY_AUTH_TOKEN", ""):
        return "RAY_AUTH_TOKEN", token
    setting = "RAY_AUTH_TOKEN_PATH" if os.environ.get("RAY_AUTH_TOKEN_PATH") else "~/.ray/auth_token"
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return setting, path.read_text().strip() if path.is_file() else ""
