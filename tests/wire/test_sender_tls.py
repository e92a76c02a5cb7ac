"""Whom the sender believes to be who they say they are."""

import datetime
import ssl
import warnings
from pathlib import Path

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.delivery.target import SendError, parse_target
from service.delivery.webhook.connection import tls_context
from tests.wire.receivers import HEADERS, LOOPS, OK, Peer, Script, always, names, receiving, sending

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])

LOOKUP = names(receiver_test=["127.0.0.1"])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def serving(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = tls_context()
    authority.configure_trust(context)
    return context


async def refusal_of(server: ssl.SSLContext, client: ssl.SSLContext | None) -> SendError:
    async with (
        receiving(always(OK), tls=server, name="receiver.test") as receiver,
        sending(lookup=LOOKUP, ssl_context=client) as sender,
    ):
        with pytest.raises(SendError) as caught:
            await sender.send(receiver.target, HEADERS, b"{}", 60)
        assert caught.value.code == "tls_failed"
        assert receiver.requests == []
        return caught.value


async def test_a_trusted_receiver_is_sent_to_over_a_kept_connection(authority: trustme.CA) -> None:
    server = serving(authority.issue_cert("receiver.test"))
    async with (
        receiving(always(OK), tls=server, name="receiver.test") as receiver,
        sending(lookup=LOOKUP, ssl_context=trusting(authority)) as sender,
    ):
        for _ in range(3):
            answer = await sender.send(receiver.target, HEADERS, b"{}", 60)
            assert answer.status_code == 204
        assert receiver.connections == 1
        assert b"host: receiver.test:%d\r\n" % receiver.port in receiver.requests[0]


async def test_an_address_can_be_certified(authority: trustme.CA) -> None:
    server = serving(authority.issue_cert("127.0.0.1"))
    async with (
        receiving(always(OK), tls=server) as receiver,
        sending(ssl_context=trusting(authority)) as sender,
    ):
        assert (await sender.send(receiver.target, HEADERS, b"{}", 60)).status_code == 204


async def test_an_extra_authority_is_read_from_a_file(
    authority: trustme.CA, tmp_path: Path
) -> None:
    file = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(file))
    server = serving(authority.issue_cert("receiver.test"))
    async with (
        receiving(always(OK), tls=server, name="receiver.test") as receiver,
        sending(lookup=LOOKUP, ssl_context=tls_context(str(file))) as sender,
    ):
        assert (await sender.send(receiver.target, HEADERS, b"{}", 60)).status_code == 204


async def test_an_unknown_authority_is_refused(authority: trustme.CA) -> None:
    error = await refusal_of(serving(authority.issue_cert("receiver.test")), client=None)
    assert "certificate" in str(error)


async def test_another_name_is_refused(authority: trustme.CA) -> None:
    server = serving(authority.issue_cert("elsewhere.test"))
    error = await refusal_of(server, trusting(authority))
    assert "Hostname mismatch" in str(error)


async def test_an_expired_certificate_is_refused(authority: trustme.CA) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    server = serving(authority.issue_cert("receiver.test", not_before=past, not_after=past))
    error = await refusal_of(server, trusting(authority))
    assert "expired" in str(error)


async def plain(peer: Peer) -> None:
    await peer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await peer.gone()


async def closed(_peer: Peer) -> None:
    pass


async def reset(peer: Peer) -> None:
    peer.reset()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (plain, "did not complete the TLS handshake: wrong version number."),
        (closed, "broke the TLS handshake off."),
        (reset, "broke the TLS handshake off."),
    ],
)
async def test_a_receiver_without_a_handshake_is_refused(script: Script, reason: str) -> None:
    async with receiving(script) as receiver, sending() as sender:
        target = parse_target(f"https://127.0.0.1:{receiver.port}/")
        with pytest.raises(SendError) as caught:
            await sender.send(target, HEADERS, b"{}", 60)
        assert caught.value.code == "tls_failed"
        assert str(caught.value).endswith(reason)


async def alert_of(server: ssl.SSLContext, client: ssl.SSLContext) -> str:
    """What is said of a receiver that refuses the handshake."""

    async def script(peer: Peer) -> None:
        await peer.handshake(server)
        await peer.gone()

    async with (
        receiving(script) as receiver,
        sending(lookup=LOOKUP, ssl_context=client) as sender,
    ):
        target = parse_target(f"https://receiver.test:{receiver.port}/")
        with pytest.raises(SendError) as caught:
            await sender.send(target, HEADERS, b"{}", 60)
        assert caught.value.code == "tls_failed"
        return str(caught.value)


async def test_a_receiver_that_speaks_only_old_versions_is_refused(authority: trustme.CA) -> None:
    server = serving(authority.issue_cert("receiver.test"))
    server.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        server.minimum_version = server.maximum_version = ssl.TLSVersion.TLSv1_1
    message = await alert_of(server, trusting(authority))
    reason = "tlsv1 alert protocol version"
    assert message == f"receiver.test did not complete the TLS handshake: {reason}."


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (
            ssl.TLSVersion.TLSv1_2,
            "receiver.test did not complete the TLS handshake: sslv3 alert handshake failure.",
        ),
        (
            ssl.TLSVersion.TLSv1_3,
            "The receiver ended TLS: tlsv13 alert certificate required.",
        ),
    ],
)
async def test_a_receiver_that_demands_a_certificate_is_told_apart(
    authority: trustme.CA, version: ssl.TLSVersion, message: str
) -> None:
    server = serving(authority.issue_cert("receiver.test"))
    server.maximum_version = version
    server.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server)
    assert await alert_of(server, trusting(authority)) == message


async def test_a_certificate_for_no_name_is_refused_though_its_subject_is_called_so(
    tmp_path: Path,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver.test")])
    now = datetime.datetime.now(datetime.UTC)  # noqa: TID251  OpenSSL reads the wall clock
    day = datetime.timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    no_encryption = serialization.NoEncryption()
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    public, private = tmp_path / "certificate.pem", tmp_path / "key.pem"
    public.write_bytes(certificate.public_bytes(pem))
    private.write_bytes(key.private_bytes(pem, pkcs8, no_encryption))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(public, private)
    error = await refusal_of(server, tls_context(str(public)))
    assert "Hostname mismatch" in str(error)


async def test_old_versions_are_not_spoken() -> None:
    context = tls_context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
