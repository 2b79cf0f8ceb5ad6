"""Homomorphic encryption: templates are matched without being decrypted."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional

from bench.errors import UserError
from bench.leaks import Leak
from bench.registry import DEFENSES
from defenses.base import Defender, Defense

if TYPE_CHECKING:
    from types import ModuleType

DEGREE = 2048
"""Degree of the ring: with SEAL's modulus for it, 128 bits of security."""

PLAIN_BITS = 17
LEVELS = 255
"""Numbers of a template are whole ones in [-255, 255]: an inner product fits in 17 bits."""

SEED_WORDS = 8
"""64-bit words of a seed of SEAL's generator."""

RECORD_BYTES = 2**14
"""A ciphertext is padded to this length, since its compressed length tells it from others."""

Seed = tuple[int, ...]


@DEFENSES.register("homomorphic")
@dataclass
class Homomorphic(Defense):
    """Templates under BFV encryption, matched by encrypted inner products (Boddeti, BTAS 2018).

    A template is the coefficients of a polynomial. Its product with the polynomial of a plain probe
    in reverse order holds the inner product in one coefficient; 16 probes of 128 numbers fit in
    one product. Only who holds the secret key can decrypt a score, and decrypts nothing else.

    Leaks: template. Secret: the key, one for all records of the instance. Score: the decrypted
    cosine of templates in steps of 1/255. Known weakness: the cipher hides the template and the
    score does not: whoever may ask for scores (threat `score`) is in front of an undefended system,
    and whoever steals the key decrypts all. Records are ciphertexts of the library SEAL through
    TenSEAL (`pip install 'veilbench[encryption]'`). Every record has a seed of its own, drawn from
    the generator, and so follows from it; a deployment must take the library's own randomness.
    """

    leaks = frozenset({Leak.TEMPLATE})
    needs: ClassVar[str] = "tenseal"

    @property
    def mutual(self) -> bool:
        """Two ciphertexts are not compared with one another."""
        return False

    @property
    def renewable(self) -> bool:
        """Another key makes another record."""
        return True

    def fit(self, world: Defender) -> None:
        """Draw the seed of the key.

        Raises:
            UserError: TenSEAL is not installed.
            ValueError: A template is too long for the ring.
        """
        _seal()
        self.size = world.recognizer.embedding_size
        if self.size > DEGREE:
            raise ValueError(f"homomorphic takes templates of at most {DEGREE} numbers")
        self.secret = _seeds(1, world.generator())

    def renewed(self, generator: torch.Generator) -> Self:
        """Return this instance with the seed of another key."""
        other = copy.copy(self)
        other.secret = _seeds(1, generator)
        return other

    def protect(self, x: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return (N, 16384) ciphertexts: bytes as numbers."""
        seal, key = _seal(), self._key()
        made = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "record"
            for row, seed in zip(_whole(x), _seeds(len(x), generator), strict=True):
                encryptor = seal.Encryptor(_context(_words(seed)), key)
                encryptor.encrypt_symmetric(_polynomial(row.tolist())).save(str(path))
                made.append(path.read_bytes().ljust(RECORD_BYTES, b"\0"))
        records = torch.frombuffer(bytearray(b"".join(made)), dtype=torch.uint8)
        return records.reshape(len(x), -1).float().to(x.device)

    def decrypt(self, records: Tensor) -> Tensor:
        """Return the templates (N, D) of records: what a thief of the key has, to 1/255."""
        seal = _seal()
        decryptor = seal.Decryptor(_context(), self._key())
        rows = []
        for record in self._ciphertexts(records):
            plain = seal.Plaintext()
            decryptor.decrypt(record, plain)
            rows.append(_coefficients(plain, range(self.size)))
        return torch.tensor(rows, device=records.device) / LEVELS

    def score(self, probes: Tensor, references: Tensor) -> Tensor:
        """Return the (P, R) decrypted cosine of plain probes (P, D) and ciphertexts (R, 16384)."""
        seal, size = _seal(), self.size
        context = _context()
        evaluator, decryptor = seal.Evaluator(context), seal.Decryptor(context, self._key())
        # A probe in reverse order: its product with a template has the inner product as the
        # coefficient of x^(D - 1). One after the other they do not reach each other's coefficient.
        groups = [
            (_polynomial(group.flip(1).flatten().tolist()), len(group))
            for group in _whole(probes).split(DEGREE // size)
        ]
        columns = []
        for record in self._ciphertexts(references):
            column: list[int] = []
            for group, count in groups:
                product, plain = seal.Ciphertext(), seal.Plaintext()
                evaluator.multiply_plain(record, group, product)
                decryptor.decrypt(product, plain)
                column += _coefficients(plain, range(size - 1, count * size, size))
            columns.append(column)
        return torch.tensor(columns, device=probes.device).T / LEVELS**2

    def linkage(self, records: Tensor, others: Tensor) -> Tensor:
        """Return the cosine of the ciphertexts' bytes: no better linker is known without a key."""
        centered = [functional.normalize(x - 127.5, dim=1) for x in (records, others)]
        return centered[0] @ centered[1].T

    def bytes_per_record(self, shape: torch.Size) -> float:
        """Return the bytes of a ciphertext."""
        return float(shape.numel())

    def _key(self) -> Any:
        return _seal().KeyGenerator(_context(_words(self.secret[0]))).secret_key()

    def _ciphertexts(self, records: Tensor) -> Iterable[Any]:
        seal, context = _seal(), _context()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "record"
            for record in records.cpu().to(torch.uint8):
                path.write_bytes(record.numpy().tobytes())
                read = seal.Ciphertext()
                read.load(context, str(path))
                yield read


def _seal() -> ModuleType:
    try:
        import tenseal.sealapi
    except ImportError as error:
        raise UserError(
            "homomorphic needs the library TenSEAL: pip install 'veilbench[encryption]'."
        ) from error
    return tenseal.sealapi


@lru_cache(maxsize=4)
def _context(seed: Seed = ()) -> Any:
    """Return the parameters; what is drawn under them follows from the seed, if there is one."""
    seal = _seal()
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(DEGREE)
    security = seal.SEC_LEVEL_TYPE.TC128
    parameters.set_coeff_modulus(seal.CoeffModulus.BFVDefault(DEGREE, security))
    parameters.set_plain_modulus(2**PLAIN_BITS)
    if seed:
        parameters.set_random_generator(seal.Blake2xbPRNGFactory(list(seed)))
    return seal.SEALContext(parameters, True, security)


def _seeds(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2**62, (count, SEED_WORDS), generator=generator)


def _words(seed: Tensor) -> Seed:
    return tuple(seed.tolist())


def _whole(x: Tensor) -> Tensor:
    return (functional.normalize(x, dim=1) * LEVELS).round().int().cpu()


def _polynomial(numbers: Sequence[int]) -> Any:
    """Return a plaintext with these coefficients, the lowest first."""
    terms = [f"{value % 2**PLAIN_BITS:X}x^{place}" for place, value in enumerate(numbers) if value]
    return _seal().Plaintext(" + ".join(reversed(terms)) or "0")


def _coefficients(plain: Any, places: Iterable[int]) -> list[int]:
    """Return coefficients as signed numbers; SEAL leaves out the highest ones that are 0."""
    half, known = 2 ** (PLAIN_BITS - 1), plain.coeff_count()
    found = [plain.data(place) if place < known else 0 for place in places]
    return [value - 2 * half if value > half else value for value in found]
