"""Container images made of this machine's own Python, where no registry is in reach.

The interpreter, its standard library and the shared libraries that they need are put
into a layer as they are, with a static busybox for a shell; no container is started and
nothing is downloaded. It runs wherever the kernel and the processor are the same kind.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from lobstertrap.errors import NotFound
from lobstertrap.targets.podman_archive import Layer

APPLICATION = "/opt/lobstertrap"
"""Where the mover's packages are in an image."""

REQUEST = "/run/lobstertrap-request"
"""An empty file in a mover image, over which the request is mounted: the root file
system is read-only, so that it cannot be made there."""

_PREFIX = "/usr/local"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
_ZONES = "/usr/share/zoneinfo"

ENVIRONMENT = {
    "PATH": f"{_PREFIX}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LD_LIBRARY_PATH": f"{_PREFIX}/lib",
    "SSL_CERT_FILE": _CERTIFICATES,
}
"""What an image made of these layers sets."""

_LEFT_OUT = {
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3"),
    *("site-packages", "dist-packages", "pydoc_data", "__phello__"),
}
_MODULES_LEFT_OUT = re.compile(r"_(test|tkinter|xx)|xxlimited|config-\d")
_MOVER_NEEDS = (
    *("blake3", "boto3", "cryptography", "msgpack", "pyfastcdc", "tenacity"),
    *("zstandard", "pydantic", "pyyaml", "platformdirs"),
)
_BOTOCORE_DATA = {"s3", "sts", "sso", "sso-oidc", "signin"}
_USERS = "root:x:0:0:root:/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n"
_GROUPS = "root:x:0:\nagent:x:1000:\n"


def python_layer(layer: Layer) -> None:
    """Fill a layer with `system_layer`, this interpreter and its library."""
    system_layer(layer)
    _add_interpreter(layer)


def system_layer(layer: Layer) -> None:
    """Fill a layer with a shell, users, certificates and time zones."""
    for name in ("/bin", "/sbin", "/lib", "/lib64"):
        if Path(name).is_symlink():  # as here, so that the loader's path is right
            layer.link(name, str(Path(name).readlink()))
    for name, mode in (("/tmp", 0o1777), ("/var/tmp", 0o1777), ("/root", 0o700)):  # noqa: S108 - in the image
        layer.directory(name, mode)
    for name in ("/proc", "/sys", "/dev", "/run", "/home/agent"):
        layer.directory(name)
    layer.text("/etc/passwd", _USERS)
    layer.text("/etc/group", _GROUPS)
    layer.text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    if Path(_CERTIFICATES).exists():
        layer.file(_CERTIFICATES, Path(_CERTIFICATES))
    if Path(_ZONES).is_dir():
        layer.tree(_ZONES, Path(_ZONES), without=lambda p: p.name in {"right", "posix"})
    _add_shell(layer)


def _add_shell(layer: Layer) -> None:
    busybox = shutil.which("busybox")
    if busybox is None or _libraries([Path(busybox)]):
        return  # only a static one runs without more
    layer.file("/usr/bin/busybox", Path(busybox))
    listed = subprocess.run(
        [busybox, "--list"], capture_output=True, text=True, check=True
    )
    for applet in sorted(set(listed.stdout.split()) - {"busybox"}):
        layer.link(f"/usr/bin/{applet}", "busybox")


def _add_interpreter(layer: Layer) -> None:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sys.executable).resolve()
    layer.file(f"{_PREFIX}/bin/{version}", interpreter)
    for name in ("python3", "python"):
        layer.link(f"{_PREFIX}/bin/{name}", version)
    library = Path(sysconfig.get_path("stdlib"))
    modules = Path(sysconfig.get_config_var("DESTSHARED"))
    place = f"{_PREFIX}/lib/{version}"
    layer.tree(place, library, without=_is_left_out)
    layer.tree(f"{place}/lib-dynload", modules, without=_is_left_out)
    binaries = [p for p in modules.glob("*.so") if not _is_left_out(p)]
    add_libraries(layer, [interpreter, *binaries])


def add_libraries(layer: Layer, binaries: Iterable[Path]) -> None:
    """Add the shared libraries that `binaries` load, and those that glibc opens."""
    found = _libraries(binaries)
    for library in list(found):
        if library.name.startswith("libc.so"):
            # Opened at run time by name: name services, and ending a thread.
            extra = ("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1")
            found |= {p for n in extra if (p := library.parent / n).exists()}
    for library in sorted(found):
        directory = library.parent.resolve()
        usual = directory.parts[1] in {"lib", "lib64", "usr"}
        place = directory if usual else Path(_PREFIX) / "lib"
        layer.file(str(place / library.name), library.resolve())


def _libraries(binaries: Iterable[Path]) -> set[Path]:
    """Return the paths of the shared libraries, as the loader finds them here."""
    wanted = [str(path) for path in binaries]
    listed = subprocess.run(
        ["ldd", *wanted], capture_output=True, text=True, check=False
    )
    paths = re.findall(r"(?:=> |^\s+)(/\S+) \(0x", listed.stdout, re.MULTILINE)
    return {Path(path) for path in paths}


def _is_left_out(path: Path) -> bool:
    return path.name in _LEFT_OUT or bool(_MODULES_LEFT_OUT.match(path.name))


def packages_layer(layer: Layer) -> None:
    """Fill a layer with the mover's dependencies, as they are installed here."""
    binaries = []
    for name, source in _package_files():
        add = layer.module if source.suffix == ".py" else layer.file
        add(f"{APPLICATION}/{name}", source)
        if ".so" in source.suffixes:
            binaries.append(source)
    add_libraries(layer, binaries)


def own_layer(layer: Layer) -> None:
    """Fill a layer with lobstertrap itself, from the checkout or the wheel."""
    layer.text(REQUEST, "")
    for source in _own_files():
        name = source.relative_to(_own_root().parent)
        add = layer.module if source.suffix == ".py" else layer.file
        add(f"{APPLICATION}/{name}", source)


def mover_digest() -> str:
    """Return the digest (hex) of everything that a mover image is made of."""
    total = hashlib.sha256(f"{sys.version} {_PREFIX} 2\n".encode())
    for dist in _distributions():
        total.update(f"{dist.name} {dist.version}\n".encode())
    for source in _own_files():
        total.update(str(source.relative_to(_own_root())).encode() + b"\0")
        total.update(hashlib.sha256(source.read_bytes()).digest())
    return total.hexdigest()


def _own_root() -> Path:
    return Path(__file__).resolve().parents[1]


def _own_files() -> list[Path]:
    files = (path for kind in ("py", "so") for path in _own_root().rglob(f"*.{kind}"))
    return sorted(files)


def _distributions() -> list[importlib.metadata.Distribution]:
    """Return the mover's dependencies and theirs, as installed, sorted by name."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = list(_MOVER_NEEDS)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError as error:
            if name in _MOVER_NEEDS:
                raise NotFound(
                    f"package {name} is not installed, which a mover image needs",
                    hint="install lobstertrap with all its dependencies",
                ) from error
            continue  # for another platform or Python
        needs = [n for n in found[name].requires or [] if "extra ==" not in n]
        waiting += [match[0] for n in needs if (match := re.match(r"[\w.-]+", n))]
    return [found[name] for name in sorted(found)]


def _package_files() -> Iterator[tuple[str, Path]]:
    for dist in _distributions():
        for file in sorted(dist.files or [], key=str):
            source = Path(str(dist.locate_file(file)))
            if (
                ".." in file.parts
                or "__pycache__" in file.parts
                or "RECORD" in file.name
            ):
                continue
            if _is_wanted(file.parts) and source.is_file():
                yield str(file), source


def _is_wanted(parts: tuple[str, ...]) -> bool:
    """Leave out the other 400 services of AWS: nine tenths of all the bytes."""
    service = parts[:2] in {("botocore", "data"), ("boto3", "data")} and len(parts) > 3  # noqa: PLR2004 - package/data/service/file
    return not service or parts[2] in _BOTOCORE_DATA
