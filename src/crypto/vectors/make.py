"""Makes the vectors of Python's hashlib and cryptography: pip install cryptography, then run here."""

import base64
import hashlib

from cryptography.fernet import Fernet


def hexadecimal(data):
    return data.hex() or "-"


with open("pbkdf2_hashlib.txt", "w") as file:
    file.write("# password, salt, rounds, key of hashlib.pbkdf2_hmac('sha256', ..); hexadecimal, '-' is empty\n")
    rows = [(b"", b"salt", 2), (b"password", b"salt", 1), (b"password", b"salt", 2), (b"password", b"salt", 4096)]
    rows += [(b"k" * length, b"\xa5" * 64, 3) for length in (63, 64, 65, 200)]
    rows += [(b"password", b"\xa5" * length, 3) for length in (51, 52, 59, 60, 61, 200)]
    rows += [("p\xe4ssw\xf6rter".encode(), bytes(range(64)), 480_000)]
    for password, salt, rounds in rows:
        key = hashlib.pbkdf2_hmac("sha256", password, salt, rounds)
        file.write(f"{hexadecimal(password)} {hexadecimal(salt)} {rounds} {key.hex()}\n")

with open("fernet_python.txt", "w") as file:
    file.write("# key, seconds, iv, plaintext, token of cryptography.fernet; hexadecimal, '-' is empty\n")
    YEAR_2100 = 4_102_444_800
    rows = [(b"", 1_700_000_000), (b"{}", 0), (b'"in the year 2100"', YEAR_2100), (bytes(range(256)), 1)]
    rows += [(b"x" * length, 1_700_000_000) for length in (15, 16, 17, 31, 32, 33, 127, 128, 129)]
    for number, (plaintext, seconds) in enumerate(rows):
        key = hashlib.sha256(b"key %d" % number).digest()
        iv = hashlib.sha256(b"iv %d" % number).digest()[:16]
        fernet = Fernet(base64.urlsafe_b64encode(key))
        token = fernet._encrypt_from_parts(plaintext, seconds, iv)
        assert fernet.decrypt(token) == plaintext
        file.write(f"{key.hex()} {seconds} {iv.hex()} {hexadecimal(plaintext)} {token.decode()}\n")
