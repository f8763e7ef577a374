"""Programs that speak TLS by other libraries than OpenSSL, and small ones for libraries without a program.

``copy_library`` brings a library into the lab; the rest are commands and texts. The Python programs call the
library through ctypes: what is traced is the library, whoever calls it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import curl_cffi

from spliffd.pb import spliff_pb2
from tests.support.daemon import Daemon
from tests.support.lab import Lab, wait_for
from tests.support.servers import free_port


def copy_library(lab: Lab, *names: str) -> None:
    """Private copies of the system's libraries, by file name."""
    for name in names:
        source = next(Path("/usr/lib").glob(f"*/{name}"))
        shutil.copy(source, lab.libraries / name)


def copy_wheels(lab: Lab, *names: str) -> list[Path]:
    """Private copies of installed wheels with TLS of their own; returns the files that hold it."""
    folder = lab.folder / "python"
    folder.mkdir()
    for name in names:
        for source in Path(curl_cffi.__file__).parents[1].glob(name):
            copy = folder / source.name
            shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy)
    return [*folder.glob("*.libs/libssl*.so*"), *folder.glob("curl_cffi/_wrapper*.so")]


def python_path(lab: Lab) -> dict[str, str]:
    """Environment in which Python takes the copied wheels, and the loader the libraries that they bring."""
    folder = lab.folder / "python"
    libraries = [lab.libraries, *sorted(folder.glob("*.libs"))]
    return {"PYTHONPATH": str(folder), "LD_LIBRARY_PATH": ":".join(map(str, libraries))}


def private_program(lab: Lab, daemon: Daemon, path: str, *idle: str) -> Path:
    """A private copy of a program with TLS in it, probed: ``idle`` are arguments that make it wait."""
    copy = lab.folder / Path(path).name
    shutil.copy(path, copy)
    lab.start(copy, *idle)
    wait_for(lambda: attached(daemon, copy), 30, f"{copy} attached")
    return copy


def attached(daemon: Daemon, *paths: Path) -> bool:
    """Whether all of these files are probed."""
    found = daemon.stub().ListLibraries(spliff_pb2.ListLibrariesRequest()).libraries
    return {str(path) for path in paths} <= {one.path for one in found if one.state == "attached"}


def nss_database(lab: Lab) -> Path:
    """An NSS database with the lab's certificate and key, under the name "lab"."""
    folder = lab.folder / "nss"
    if folder.exists():
        return folder
    folder.mkdir()
    bundle = lab.folder / "lab.p12"
    for command in (
        ["certutil", "-N", "-d", f"sql:{folder}", "--empty-password"],
        ["openssl", "pkcs12", "-export", "-in", lab.certificate, "-inkey", lab.key, "-name", "lab",
         "-passout", "pass:lab", "-out", bundle],
        ["pk12util", "-i", bundle, "-d", f"sql:{folder}", "-W", "lab"],
    ):  # fmt: skip
        subprocess.run(list(map(str, command)), check=True, capture_output=True)
    return folder


def listening(port: int) -> bool:
    """Whether somebody listens on ``port``, without connecting to it: some servers serve one connection."""
    wanted = f":{port:04X} "
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with open(table, encoding="ascii") as file:
            for line in file:
                fields = line.split()
                if fields[3] == "0A" and (fields[1] + " ").endswith(wanted):
                    return True
    return False


def serve(lab: Lab, *command: str | Path, **options) -> tuple[subprocess.Popen[bytes], int]:
    """Starts a server; ``{port}`` in its command becomes a free port, which is returned with the process."""
    port = free_port()
    filled = [str(word).replace("{port}", str(port)) for word in command]
    options.setdefault("stdout", subprocess.DEVNULL)
    options.setdefault("stderr", subprocess.DEVNULL)
    process = lab.start(*filled, **options)
    wait_for(lambda: listening(port), 30, f"{command[0]} on port {port}")
    return process, port


PYCURL = r"""
import pycurl, sys
curl = pycurl.Curl()
curl.setopt(pycurl.URL, f"https://127.0.0.1:{sys.argv[1]}{sys.argv[2]}")
curl.setopt(pycurl.SSL_VERIFYPEER, 0)
curl.setopt(pycurl.SSL_VERIFYHOST, 0)
curl.setopt(pycurl.WRITEFUNCTION, lambda data: None)
curl.perform()
"""
"""PORT PATH: libcurl with an OpenSSL of its own, as wheels bring it."""

CFFI = r"""
import sys
from curl_cffi import requests
print(requests.get(f"https://127.0.0.1:{sys.argv[1]}{sys.argv[2]}", verify=False).status_code)
"""
"""PORT PATH: libcurl with BoringSSL inside the extension module."""

HTTP_CLIENT = r"""
import http.client, ssl, sys
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=ssl._create_unverified_context())
connection.request("GET", sys.argv[2])
connection.getresponse().read()
"""

ASYNCIO = r"""
import asyncio, ssl, sys
async def main():
    context = ssl._create_unverified_context()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]), ssl=context)
    writer.write(f"GET {sys.argv[2]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    await reader.read()
    writer.close()
asyncio.run(main())
"""

NODE_HTTPS = r"""
const [port, path] = process.argv.slice(1);
require("https").get({ host: "127.0.0.1", port, path, rejectUnauthorized: false }, (answer) => answer.resume());
"""

NODE_FETCH = r"""
process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
const [port, path] = process.argv.slice(1);
fetch(`https://127.0.0.1:${port}${path}`).then((answer) => answer.text());
"""

OPENSSL_11 = r"""
import ctypes, socket, sys
port, path, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
lib = ctypes.CDLL(file)
P = ctypes.c_void_p
for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
    getattr(lib, name).restype = P
ssl = P(lib.SSL_new(P(lib.SSL_CTX_new(P(lib.TLS_client_method())))))
raw = socket.create_connection(("127.0.0.1", port))
assert lib.SSL_set_fd(ssl, raw.fileno()) == 1
assert lib.SSL_connect(ssl) == 1
request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
assert lib.SSL_write(ssl, request, len(request)) == len(request)
buffer = ctypes.create_string_buffer(65536)
while lib.SSL_read(ssl, buffer, len(buffer)) > 0:
    pass
lib.SSL_shutdown(ssl)
lib.SSL_free(ssl)
"""
"""PORT PATH FILE: one request by the OpenSSL 1.1 in FILE."""

WOLFSSL = r"""
import ctypes, socket, sys
role, port, first, second = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
lib = ctypes.CDLL("libwolfssl.so.35")
for name in ("wolfSSLv23_client_method", "wolfSSLv23_server_method", "wolfSSL_CTX_new", "wolfSSL_new"):
    getattr(lib, name).restype = ctypes.c_void_p
P = ctypes.c_void_p
lib.wolfSSL_Init()
method = lib.wolfSSLv23_client_method() if role == "client" else lib.wolfSSLv23_server_method()
context = P(lib.wolfSSL_CTX_new(P(method)))
lib.wolfSSL_CTX_set_verify(context, 0, None)
if role == "server":
    assert lib.wolfSSL_CTX_use_certificate_file(context, first.encode(), 1) == 1
    assert lib.wolfSSL_CTX_use_PrivateKey_file(context, second.encode(), 1) == 1
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    raw, _ = listener.accept()
else:
    raw = socket.create_connection(("127.0.0.1", port))
ssl = P(lib.wolfSSL_new(context))
assert lib.wolfSSL_set_fd(ssl, raw.fileno()) == 1
assert (lib.wolfSSL_connect if role == "client" else lib.wolfSSL_accept)(ssl) == 1
buffer = ctypes.create_string_buffer(65536)
def read():
    size = lib.wolfSSL_read(ssl, buffer, len(buffer))
    return buffer.raw[: max(0, size)]
def write(data):
    assert lib.wolfSSL_write(ssl, data, len(data)) == len(data)
if role == "client":
    write(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % first.encode())
    got = b""
    while data := read():
        got += data
    print(got.split(b"\r\n")[0].decode())
else:
    request = b""
    while b"\r\n\r\n" not in request:
        request += read()
    write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
lib.wolfSSL_shutdown(ssl)
lib.wolfSSL_free(ssl)
raw.close()
"""
"""client PORT PATH -, or server PORT CERTIFICATE KEY: one request by libwolfssl."""

MBEDTLS = r"""
import ctypes, socket, sys
role, port, first, second = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
crypto, x509, lib = (ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
                     for name in ("libmbedcrypto.so.7", "libmbedx509.so.1", "libmbedtls.so.14"))
room = lambda: ctypes.create_string_buffer(65536)   # larger than any of its structures
entropy, drbg, ssl, config, chain, key = (room() for _ in range(6))
net = ctypes.create_string_buffer(64)
crypto.mbedtls_entropy_init(entropy)
crypto.mbedtls_ctr_drbg_init(drbg)
assert crypto.mbedtls_ctr_drbg_seed(drbg, crypto.mbedtls_entropy_func, entropy, None, 0) == 0
lib.mbedtls_ssl_init(ssl)
lib.mbedtls_ssl_config_init(config)
assert lib.mbedtls_ssl_config_defaults(config, 0 if role == "client" else 1, 0, 0) == 0
lib.mbedtls_ssl_conf_authmode(config, 0)
lib.mbedtls_ssl_conf_rng(config, crypto.mbedtls_ctr_drbg_random, drbg)
if role == "server":
    x509.mbedtls_x509_crt_init(chain)
    crypto.mbedtls_pk_init(key)
    assert x509.mbedtls_x509_crt_parse_file(chain, first.encode()) == 0
    assert crypto.mbedtls_pk_parse_keyfile(key, second.encode(), None) == 0
    assert lib.mbedtls_ssl_conf_own_cert(config, chain, key) == 0
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    raw, _ = listener.accept()
else:
    raw = socket.create_connection(("127.0.0.1", port))
ctypes.memmove(net, raw.fileno().to_bytes(4, "little"), 4)   # mbedtls_net_context: { int fd; }
assert lib.mbedtls_ssl_setup(ssl, config) == 0
lib.mbedtls_ssl_set_bio(ssl, net, lib.mbedtls_net_send, lib.mbedtls_net_recv, None)
assert lib.mbedtls_ssl_handshake(ssl) == 0
buffer = room()
def read():
    size = lib.mbedtls_ssl_read(ssl, buffer, ctypes.c_size_t(len(buffer)))
    return buffer.raw[: max(0, size)]
def write(data):
    assert lib.mbedtls_ssl_write(ssl, data, ctypes.c_size_t(len(data))) == len(data)
if role == "client":
    write(b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % first.encode())
    got = b""
    while data := read():
        got += data
    print(got.split(b"\r\n")[0].decode())
else:
    request = b""
    while b"\r\n\r\n" not in request:
        request += read()
    write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n")
lib.mbedtls_ssl_close_notify(ssl)
lib.mbedtls_ssl_free(ssl)
raw.close()
"""
"""client PORT PATH -, or server PORT CERTIFICATE KEY: one request by libmbedtls."""

REQUESTS = r"""
import requests, sys, warnings
warnings.simplefilter("ignore")
print(requests.get(f"https://127.0.0.1:{sys.argv[1]}{sys.argv[2]}", verify=False).status_code)
"""

AIOHTTP = r"""
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession() as session:
        async with session.get(f"https://127.0.0.1:{sys.argv[1]}{sys.argv[2]}", ssl=False) as answer:
            print(answer.status, await answer.text())
asyncio.run(main())
"""

BIO_ONLY = r"""
import ctypes, sys
lib, crypto = ctypes.CDLL("libssl.so.3"), ctypes.CDLL("libcrypto.so.3")
P = ctypes.c_void_p
for holder, name in ((lib, "TLS_client_method"), (lib, "SSL_CTX_new"), (lib, "BIO_new_ssl_connect")):
    getattr(holder, name).restype = P
bio = P(lib.BIO_new_ssl_connect(P(lib.SSL_CTX_new(P(lib.TLS_client_method())))))
assert crypto.BIO_ctrl(bio, 100, 0, b"127.0.0.1") == 1             # BIO_set_conn_hostname
assert crypto.BIO_ctrl(bio, 100, 1, sys.argv[1].encode()) == 1     # BIO_set_conn_port
request = f"GET {sys.argv[2]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
assert crypto.BIO_write(bio, request, len(request)) == len(request)
buffer = ctypes.create_string_buffer(65536)
while crypto.BIO_read(bio, buffer, len(buffer)) > 0:
    pass
crypto.BIO_free_all(bio)
"""
"""PORT PATH: OpenSSL through BIOs alone, which never call SSL_read or SSL_write."""

HTTP_SERVER = r"""
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"hello\n")
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""
"""PORT CERTIFICATE KEY, as all servers here."""

AIOHTTP_SERVER = r"""
import ssl, sys
from aiohttp import web
async def hello(request):
    return web.Response(text="hello\n")
application = web.Application()
application.router.add_get("/hello", hello)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
web.run_app(application, host="127.0.0.1", port=int(sys.argv[1]), ssl_context=context, print=None)
"""

NODE_SERVER = r"""
const fs = require("fs");
const [port, cert, key] = process.argv.slice(1);
require("https").createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) },
  (request, answer) => answer.end("hello\n")).listen(port, "127.0.0.1");
"""

APACHE = """\
ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
ErrorLog {folder}/error.log
DefaultRuntimeDir {folder}
User www-data
Group www-data
DocumentRoot {folder}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
SSLEngine on
SSLSessionCache none
SSLCertificateFile {certificate}
SSLCertificateKeyFile {key}
"""

RUSTLS = r"""
import socket, sys, rtls
context = rtls.SSLContext(rtls.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, rtls.CERT_NONE
tls = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))), server_hostname="localhost")
tls.sendall(f"GET {sys.argv[2]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
while tls.recv(65536):
    pass
sys.stdin.read()
"""
"""PORT PATH: one request by rustls, then waits for the end of its input."""
