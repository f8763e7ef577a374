"""Why a TLS library says that a handshake failed, by its error's number.

Takes numbers as the eBPF programs hand them over (bpf/events.h, enum fact); returns half a sentence. Numbers
that are not in the tables are told as such. Sources: openssl/sslerr.h and openssl/x509_vfy.h of OpenSSL 3,
the GnuTLS manual, "Error codes and descriptions".
"""

from __future__ import annotations

from typing import Final

from spliffd.protocols.tls_hello import ALERTS

ERR_LIB_SSL: Final = 20
ALERT_REASONS: Final = 1000
"""SSL_AD_REASON_OFFSET: the peer's alert, as a reason."""
CERTIFICATE_VERIFY_FAILED: Final = 134

_OPENSSL: Final = {
    101: "no suitable key share", 108: "bad key share", 110: "bad extension",
    112: "no signature algorithms extension", 118: "no suitable signature algorithm", 123: "bad signature",
    CERTIFICATE_VERIFY_FAILED: "certificate verify failed", 149: "digest check failed",
    152: "excessive message size", 155: "the client speaks plain HTTP, to a proxy",
    156: "the client speaks plain HTTP", 159: "length mismatch", 166: "version too high",
    177: "no certificate assigned", 179: "no certificate set", 181: "no ciphers available",
    191: "no protocols available", 193: "no cipher suite in common", 198: "packet length too long",
    199: "the peer did not return a certificate", 209: "no supported groups extension",
    226: "refused by the server name callback", 234: "refused by a callback",
    235: "no application protocol in common", 240: "bad packet", 244: "unexpected message",
    248: "unknown cipher returned", 252: "unknown protocol", 258: "no protocol version in common",
    261: "wrong cipher returned", 267: "the peer does not speak TLS",
    281: "decryption failed or bad record mac", 294: "the peer closed the connection",
    295: "no suitable groups", 333: "legacy signature algorithm", 338: "unsafe legacy renegotiation",
    370: "wrong signature type", 373: "inappropriate fallback", 383: "wrong certificate type",
    394: "the server's DH key is too small", 396: "version too low", 397: "CA key too small",
    398: "CA signature digest too weak", 399: "certificate key too small",
    443: "the peer does not speak TLS",
}  # fmt: skip

_GNUTLS: Final = {
    8: "unsupported version", 9: "the peer does not speak TLS", 10: "no suitable certificate",
    12: "the peer sent a fatal alert", 15: "unexpected packet", 21: "no cipher suite in common",
    24: "decryption failed", 43: "error in the certificate", 48: "key usage violation",
    53: "cannot send to the peer", 54: "the connection was reset", 55: "illegal parameter",
    61: "certificate type not supported", 63: "the server's DH key is too small",
    87: "no cipher suite in common", 89: "bad signature", 110: "the peer closed the connection",
    319: "timed out", 325: "illegal parameter", 348: "certificate verify failed", 427: "missing extension",
}  # fmt: skip

_CERTIFICATE: Final = {
    2: "unable to get issuer certificate", 7: "bad signature", 9: "not yet valid", 10: "expired",
    18: "self-signed certificate", 19: "self-signed certificate in chain",
    20: "unable to get local issuer certificate", 21: "unable to verify the first certificate",
    22: "chain too long", 23: "revoked", 24: "invalid CA certificate", 26: "unsuitable purpose",
    27: "not trusted", 28: "rejected", 62: "hostname mismatch", 63: "email address mismatch",
    64: "IP address mismatch", 66: "key too weak", 67: "CA key too weak", 68: "CA digest too weak",
}  # fmt: skip


def of_openssl(error: int) -> str:
    """``error`` is library << 32 | reason, of OpenSSL and its relatives."""
    library, reason = error >> 32, error & 0xFFFFFFFF
    if library != ERR_LIB_SSL:
        return f"OpenSSL error {reason} of library {library}"
    alert = ALERTS.get(reason - ALERT_REASONS, "")
    if alert:
        return f"the peer sent alert {alert}"
    return _OPENSSL.get(reason) or f"OpenSSL reason {reason}"


def of_gnutls(error: int) -> str:
    """``error`` is GnuTLS's, without its sign."""
    return _GNUTLS.get(error) or f"GnuTLS error -{error}"


def of_certificate(result: int) -> str:
    """``result`` is one of X509_V_*: what is wrong with a certificate; "" for a good one."""
    return (_CERTIFICATE.get(result) or f"X509 error {result}") if result else ""
