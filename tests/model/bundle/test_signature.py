"""Signed bundles: keys, signatures, commands, and a service that requires them."""

import shutil
import stat
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from model import __main__ as main
from model.bundle import bundle, signature
from model.bundle.bundle import BundleError
from model.bundle.metadata import Metadata
from model.bundle.operators import allowlist
from model.bundle.signature import SignatureError
from service.settings import Settings
from tests.support.bundles import seal
from tests.support.servers import running, wait


def run(*arguments):
    return CliRunner().invoke(main.app, [str(argument) for argument in arguments])


@pytest.fixture
def keys(tmp_path):
    """Private keys by name; each public key is beside its private one."""
    files = {name: tmp_path / f"{name}.pem" for name in ("ours", "older", "theirs")}
    for path in files.values():
        signature.generate(path)
    return files


def public(path):
    return path.with_name(f"{path.name}.pub")


@pytest.fixture
def copy(walks):
    """The bundle to be signed."""
    return walks


def refused(folder, keys):
    with pytest.raises(BundleError) as caught:
        bundle.read(folder, keys)
    text = str(caught.value)
    assert "\n" not in text
    return text


class TestKeys:
    def test_private(self, keys):
        """Only its owner can read a private key, and it is never overwritten."""
        assert stat.S_IMODE(keys["ours"].stat().st_mode) == 0o600
        before = keys["ours"].read_bytes()
        with pytest.raises(SignatureError, match=r"ours\.pem: File exists"):
            signature.generate(keys["ours"])
        assert keys["ours"].read_bytes() == before

    def test_invalid(self, copy, tmp_path, keys):
        """Without a valid public key every bundle is refused, and the file named."""
        path = tmp_path / "none.pem"
        assert refused(copy, path).startswith(f"{path}: No ")
        for text in ("", "no key", "-----BEGIN A-----x-----END A-----"):
            path.write_text(text)
            assert refused(copy, path).startswith(f"{path}: no public key")
        assert "no public key" in refused(copy, keys["ours"])  # a private key

    def test_another_kind(self, copy, tmp_path):
        """Keys of other kinds are refused."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        (tmp_path / "ec.pub").write_bytes(
            key.public_key().public_bytes(
                pem, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        (tmp_path / "ec").write_bytes(
            key.private_bytes(
                pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        assert "no Ed25519 key" in refused(copy, tmp_path / "ec.pub")
        with pytest.raises(SignatureError, match="no Ed25519 key"):
            signature.sign(b"", tmp_path / "ec")


class TestRead:
    @pytest.fixture
    def signed(self, copy, keys):
        assert run("sign", copy, "--key", keys["ours"]).exit_code == 0
        return copy

    def test_signed(self, signed, keys, bundles):
        """A signed bundle is read with and without keys, and is the same bundle."""
        before = bundle.read(bundles / "walks" / "1")
        for accepted in (None, public(keys["ours"])):
            verified = bundle.read(signed, accepted)
            allowlist.check(verified)
            assert (verified.digest, verified.metadata) == (
                before.digest,
                before.metadata,
            )

    def test_unsigned(self, copy, keys):
        """An unsigned bundle is refused, and the missing file named."""
        text = refused(copy, public(keys["ours"]))
        assert text.startswith(f"{copy / bundle.SIGNATURE}: not signed")

    def test_stranger(self, signed, keys):
        """A bundle signed by another key is refused."""
        theirs = public(keys["theirs"])
        reason = f"{signed / bundle.SIGNATURE}: signed by no key of {theirs}"
        assert refused(signed, theirs) == reason

    def test_several_keys(self, signed, keys, tmp_path):
        """Any of several keys is accepted, so that a key can be replaced."""
        both = tmp_path / "both.pem"
        for names in (("older", "ours"), ("ours", "theirs")):
            both.write_bytes(b"\n".join(public(keys[n]).read_bytes() for n in names))
            bundle.read(signed, both)
        both.write_bytes(
            b"".join(public(keys[n]).read_bytes() for n in ("older", "theirs"))
        )
        assert "signed by no key" in refused(signed, both)

    def test_sealed_anew(self, signed, keys):
        """A file changed and sealed again without the key is refused, although every
        digest is right."""
        (signed / bundle.REPORT / "card.md").write_text("mine now")
        seal(signed)
        assert "signed by no key" in refused(signed, public(keys["ours"]))

    def test_changed_file(self, signed, keys):
        """A signed bundle's files are compared with their digests too."""
        (signed / bundle.REPORT / "card.md").write_text("mine now")
        assert "SHA-256 differs" in refused(signed, public(keys["ours"]))

    def test_length(self, signed, keys):
        """A signature that is too short or too long is invalid."""
        path = signed / bundle.SIGNATURE
        original = path.read_bytes()
        for length in (0, 63, 65):
            path.write_bytes((original + b"x")[:length])
            assert "signed by no key" in refused(signed, public(keys["ours"]))

    def test_first_of_all(self, copy, keys):
        """An unsigned bundle is refused before its `bundle.json` is parsed."""
        (copy / bundle.MARKER).write_text("{")
        assert "not signed" in refused(copy, public(keys["ours"]))

    def test_folder_in_its_place(self, signed):
        """A folder with the signature's name is not exempt from the digests."""
        (signed / bundle.SIGNATURE).unlink()
        (signed / bundle.SIGNATURE).mkdir()
        (signed / bundle.SIGNATURE / "more").write_bytes(b"")
        with pytest.raises(BundleError, match=r"bundle\.sig/more: unexpected file"):
            bundle.read(signed)

    def test_moved(self, signed, keys, tmp_path):
        """A signature is not valid for another bundle."""
        other = tmp_path / "other" / "1"
        shutil.copytree(signed, other)
        text = (other / bundle.MARKER).read_text()
        (other / bundle.MARKER).write_text(text.replace('"1"', '"2"', 1))
        assert "signed by no key" in refused(other, public(keys["ours"]))


class TestCommands:
    def test_keygen_and_sign(self, copy, tmp_path):
        """`keygen` and `sign` print their files; no digest covers the signature."""
        key = tmp_path / "mine"
        result = run("keygen", key)
        assert result.exit_code == 0
        assert f"UNROLLED_BUNDLE_KEYS={key}.pub" in result.output
        result = run("sign", copy, "--key", key)
        assert result.exit_code == 0
        assert str(copy / bundle.SIGNATURE) in result.output
        verified = bundle.read(copy, public(key))
        assert bundle.SIGNATURE.as_posix() not in verified.metadata.files
        sealed = bundle.seal(copy, verified.metadata)
        assert bundle.SIGNATURE.as_posix() not in sealed.files

    def test_broken_bundle(self, copy, keys):
        """A bundle that the service would refuse is not signed."""
        (copy / "saved_model.pb").write_bytes(b"")
        bundle.seal(
            copy,
            Metadata.model_validate_json((copy / bundle.MARKER).read_text()),
        )
        result = run("sign", copy, "--key", keys["ours"])
        assert result.exit_code == 2
        assert "saved_model.pb" in result.output
        assert not (copy / bundle.SIGNATURE).exists()

    def test_public_key(self, copy, keys):
        """A public key can't sign."""
        result = run("sign", copy, "--key", public(keys["ours"]))
        assert result.exit_code == 2
        assert "no private key" in result.output

    def test_openssl(self, copy, keys):
        """OpenSSL verifies a signature."""
        if shutil.which("openssl") is None:
            pytest.skip("no openssl here")
        run("sign", copy, "--key", keys["ours"])
        command = ["openssl", "pkeyutl", "-verify", "-pubin", "-rawin"]
        command += ["-inkey", str(public(keys["ours"])), "-sigfile"]
        command += [str(copy / bundle.SIGNATURE), "-in", str(copy / bundle.MARKER)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    def test_not_installed(self, copy, keys, monkeypatch):
        """Without the package cryptography the error names the extra; reading without keys
        works."""
        for name in [n for n in sys.modules if n.partition(".")[0] == "cryptography"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "cryptography", None)
        monkeypatch.setitem(sys.modules, "cryptography.hazmat", None)
        bundle.read(copy)
        assert "WHEEL[signing]" in refused(copy, public(keys["ours"]))
        result = run("sign", copy, "--key", keys["ours"])
        assert result.exit_code == 2
        assert "WHEEL[signing]" in result.output


class TestService:
    @pytest.mark.slow
    def test_signed_only(self, bundles, copy, keys):
        """With keys the service serves signed bundles only, reports the others, and notices
        a later signature."""
        root = copy.parents[1]
        shutil.copytree(bundles / "tags", root / "tags")
        run("sign", copy, "--key", keys["ours"])
        settings = Settings(
            port=0,
            bundles=root,
            bundle_keys=str(public(keys["ours"])),
            skip_broken=True,
            reload_seconds=0.1,
            workers=1,
        )
        with running(settings) as service:
            assert list(service.registry.models) == ["walks"]
            assert "bundle.sig: not signed" in service.registry.broken["tags"]
            run("sign", root / "tags", "--key", keys["ours"])
            wait(lambda: "tags" in service.registry.models, "the signature is seen")
            wait(lambda: not service.registry.broken, "nothing is broken")
