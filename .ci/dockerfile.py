"""Reads the Dockerfile, as far as this project's goes; what is not known here is an error, not passed over."""
import json
import pathlib
import re
import shlex
import string
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


class Stage:
    """From one FROM to the next."""

    def __init__(self, base, name):
        self.base, self.name, self.instructions = base, name, []

    def values(self, name):
        return [rest for instruction, rest in self.instructions if instruction == name]

    def only(self, name):
        found = self.values(name)
        if len(found) != 1:
            sys.exit(f"Dockerfile: {name} stands {len(found)} times in the last stage")
        return found[0]

    def pairs(self, name):
        return dict(pair.split("=", 1) for pair in shlex.split(" ".join(self.values(name))))


def stages():
    """All stages, in order."""
    lines = [line for line in (CHECKOUT / "Dockerfile").read_text().splitlines() if not re.match(r"\s*#", line)]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    if "<<" in text:
        sys.exit("Dockerfile: here-documents are not known to this check")
    arguments, found = {}, []
    for line in filter(str.strip, text.splitlines()):
        name, rest = line.split(maxsplit=1)
        if name == "ARG" and not found:
            argument, value = rest.split("=", 1)
            arguments[argument] = value
        elif name == "FROM":
            base, *alias = string.Template(rest).substitute(arguments).split()
            found.append(Stage(base, alias[1] if alias else None))
        else:
            found[-1].instructions.append((name, rest.strip()))
    return found


def copied(rest):
    """(the stage it comes from or None, the sources, the target) of a COPY."""
    words = rest.split()
    origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    if any(word.startswith("--") for word in words):
        sys.exit(f"Dockerfile: an option of COPY {rest} is not known to this check")
    return origin, words[:-1], words[-1]


class Image:
    """What the last stage says of the image."""

    def __init__(self):
        *_, last = stages()
        self.environment = last.pairs("ENV")
        self.labels = last.pairs("LABEL")
        self.port = int(last.only("EXPOSE"))
        # Both are numbers: Kubernetes cannot tell from a name that it is not root's.
        self.user, self.group = map(int, last.only("USER").split(":"))
        self.volume = last.only("VOLUME")
        self.directory = last.only("WORKDIR")
        self.stop_signal = last.only("STOPSIGNAL")
        self.command = json.loads(last.only("ENTRYPOINT"))
        self.health_check = json.loads(last.only("HEALTHCHECK").split(" CMD ")[1])
