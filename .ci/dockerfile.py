"""Parser for the subset of Dockerfile syntax that this project uses; unsupported syntax is an error."""
import json
import pathlib
import re
import shlex
import string
import sys

CHECKOUT = pathlib.Path(__file__).resolve().parent.parent


class Stage:
    """A build stage: from one FROM to the next."""

    def __init__(self, base, name):
        self.base, self.name, self.instructions = base, name, []

    def values(self, name):
        return [rest for instruction, rest in self.instructions if instruction == name]

    def only(self, name):
        found = self.values(name)
        if len(found) != 1:
            sys.exit(f"Dockerfile: the last stage has {len(found)} {name} instructions instead of one")
        return found[0]

    def pairs(self, name):
        return dict(pair.split("=", 1) for pair in shlex.split(" ".join(self.values(name))))


def stages():
    """Returns all stages, in order."""
    lines = [line for line in (CHECKOUT / "Dockerfile").read_text().splitlines() if not re.match(r"\s*#", line)]
    text = re.sub(r"\\\n", " ", "\n".join(lines))
    if "<<" in text:
        sys.exit("Dockerfile: this check does not support here-documents")
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
    """Returns (source stage or None, sources, target) of a COPY."""
    words = rest.split()
    origin = words.pop(0).removeprefix("--from=") if words[0].startswith("--from=") else None
    if any(word.startswith("--") for word in words):
        sys.exit(f"Dockerfile: this check does not support an option of COPY {rest}")
    return origin, words[:-1], words[-1]


class Image:
    """The settings of the image in the last stage."""

    def __init__(self):
        *_, last = stages()
        self.environment = last.pairs("ENV")
        self.labels = last.pairs("LABEL")
        self.port = int(last.only("EXPOSE"))
        # Both are numbers: Kubernetes cannot verify that a user name is not root.
        self.user, self.group = map(int, last.only("USER").split(":"))
        self.volume = last.only("VOLUME")
        self.directory = last.only("WORKDIR")
        self.stop_signal = last.only("STOPSIGNAL")
        self.command = json.loads(last.only("ENTRYPOINT"))
        self.health_check = json.loads(last.only("HEALTHCHECK").split(" CMD ")[1])
