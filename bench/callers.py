"""TLS clients that do nothing but call: one program for each library, all in Python with ctypes.

Started with a port; for each line "size pairs" it writes a request of ``size`` bytes and reads a response as
long, ``pairs`` times, and prints the CPU nanoseconds of its thread. Requests and responses have HTTP heads,
so that the kernel takes the connection for what it is. The server is Python with the system's own library,
which nobody probes.
"""

from __future__ import annotations

from tests.support import speakers

OPENSSL = r"""
import ctypes, socket, sys
raw = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
lib = ctypes.CDLL("libssl.so.3")
P = ctypes.c_void_p
for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
    getattr(lib, name).restype = P
ssl = P(lib.SSL_new(P(lib.SSL_CTX_new(P(lib.TLS_client_method())))))
assert lib.SSL_set_fd(ssl, raw.fileno()) == 1
assert lib.SSL_connect(ssl) == 1
call_write = lambda data, size: lib.SSL_write(ssl, data, size)
call_read = lambda buffer, size: lib.SSL_read(ssl, buffer, size)
"""
GNUTLS = r"""
import ctypes, socket, sys
raw = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
lib = ctypes.CDLL("libgnutls.so.30")
ssl, credentials = ctypes.c_void_p(), ctypes.c_void_p()
assert lib.gnutls_init(ctypes.byref(ssl), 2) == 0  # GNUTLS_CLIENT
assert lib.gnutls_certificate_allocate_credentials(ctypes.byref(credentials)) == 0
assert lib.gnutls_credentials_set(ssl, 1, credentials) == 0
assert lib.gnutls_set_default_priority(ssl) == 0
lib.gnutls_transport_set_int2(ssl, raw.fileno(), raw.fileno())
while (code := lib.gnutls_handshake(ssl)) != 0:
    assert code in (-28, -52), code
call_write = lambda data, size: lib.gnutls_record_send(ssl, data, ctypes.c_size_t(size))
call_read = lambda buffer, size: lib.gnutls_record_recv(ssl, buffer, ctypes.c_size_t(size))
"""
WOLFSSL = (
    speakers.WOLFSSL.partition("buffer = ")[0]
    + r"""
call_write = lambda data, size: lib.wolfSSL_write(ssl, data, size)
call_read = lambda buffer, size: lib.wolfSSL_read(ssl, buffer, size)
"""
)
MBEDTLS = (
    speakers.MBEDTLS.partition("buffer = ")[0]
    + r"""
call_write = lambda data, size: lib.mbedtls_ssl_write(ssl, data, ctypes.c_size_t(size))
call_read = lambda buffer, size: lib.mbedtls_ssl_read(ssl, buffer, ctypes.c_size_t(size))
"""
)
LOOP = r"""
import time
print("connected", flush=True)
into = ctypes.create_string_buffer(65536)
for line in sys.stdin:
    size, pairs = map(int, line.split())
    head = b"POST /bench HTTP/1.1\r\nHost: localhost\r\nContent-Length: %08d\r\n\r\n"
    data = (head % (size - len(head % 0))).ljust(size, b"x")
    began = time.thread_time_ns()
    for _ in range(pairs):
        written = call_write(data, size)
        left = size
        while left > 0:
            got = call_read(into, 65536)
            if got > 0:
                left -= got
    print(time.thread_time_ns() - began, flush=True)
"""
SERVER = r"""
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.maximum_version = ssl.TLSVersion.TLSv1_2  # what all of the libraries speak
context.load_cert_chain(sys.argv[1], sys.argv[2])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
with context.wrap_socket(listener.accept()[0], server_side=True) as tls:
    answers = {}
    while data := tls.recv(65536):
        size = data.partition(b"Content-Length: ")[2][:8]
        whole = int(size) + data.index(b"\r\n\r\n") + 4
        while len(data) < whole:
            data += tls.recv(65536)
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %08d\r\n\r\n"
        tls.sendall((head % (whole - len(head % 0))).ljust(whole, b"y"))
"""
PROGRAMS = {"openssl": OPENSSL, "gnutls": GNUTLS, "wolfssl": WOLFSSL, "mbedtls": MBEDTLS}
FILES = {
    "openssl": "libssl.so.3",
    "gnutls": "libgnutls.so.30",
    "wolfssl": "libwolfssl.so.35",
    "mbedtls": "libmbedtls.so.14",
}
SYMBOLS = {
    "openssl": ("SSL_read", "SSL_write"),
    "gnutls": ("gnutls_record_recv", "gnutls_record_send"),
    "wolfssl": ("wolfSSL_read", "wolfSSL_write"),
    "mbedtls": ("mbedtls_ssl_read", "mbedtls_ssl_write"),
}
"""What a tool that knows no better place probes: reading, writing."""
