"""A cloud that refuses what gcloud_reference.toml does not document, and keeps what is created."""

import contextlib
import math
import pathlib
import re
import socketserver
import threading
import tomllib

REFERENCE = tomllib.loads(pathlib.Path(__file__).with_name("gcloud_reference.toml").read_text())
# Sends its arguments to the cloud, and ends as that says.
CLIENT = """#!/bin/bash
exec 3<>/dev/tcp/127.0.0.1/{port}
printf '%s\\0' $# "$@" >&3
IFS= read -r -d '' code <&3; IFS= read -r -d '' out <&3; IFS= read -r -d '' error <&3
printf %s "$out"; printf %s "$error" >&2
exit "$code"
"""
KINDS = {
    "compute tpus queued-resources": "queued-resource",
    "compute instances": "instance",
    "compute instance-groups managed": "group",
    "compute instance-templates": "template",
    "compute resource-policies": "policy",
}
NEEDS = {"group": ("template", "policy")}  # which cannot be deleted before it
STATES = {
    "value(state.state": "ACTIVE",
    "networkEndpoints": "2",
    "value(state": "READY",
    "value(status)": "RUNNING",
    "networkIP": "10.0.0.2",
    "value(location": "US-EAST5\tregion",
}


class Refused(ValueError):
    """A call that the reference does not allow."""


def command_of(line):
    """The command that a call begins with.

    Raises:
      Refused: there is none.
    """
    for command in sorted(REFERENCE, key=len, reverse=True):
        if f"{line} ".startswith(f"{command} "):
            return command
    raise Refused(f"no such command: {line}")


def parsed(words):
    """(command, positional arguments, flags) of a call."""
    positional = [word for word in words if not word.startswith("--")]
    pairs = [word.partition("=") for word in words if word.startswith("--")]
    command = command_of(" ".join(positional))
    flags = {name + equals: value for name, equals, value in pairs}
    return command, positional[len(command.split()) :], flags


def check(command, positional, flags):
    """Raises Refused for flags, values and arguments that are unknown, missing or do not fit."""
    known = REFERENCE[command]
    required = known.get("required", [])
    allowed = {*required, *known.get("flags", []), *REFERENCE["gcloud"]["flags"]}
    if unknown := set(flags) - allowed:
        raise Refused(f"unrecognized arguments: {unknown}")
    if missing := set(required) - set(flags):
        raise Refused(f"{missing} must be specified")
    if len(positional) != known.get("positional", 1):
        raise Refused(f"{command} takes {known.get('positional', 1)} arguments, not {positional}")
    for name, choices in known.get("values", {}).items():
        if flags.get(name, choices[0]) not in choices:
            raise Refused(f"{name}{flags[name]} is none of {choices}")
    type, machine = flags.get("--accelerator-type=", ""), flags.get("--machine-type=", "")
    runtime = REFERENCE["runtimes"].get(type.rpartition("-")[0])
    if type and flags["--runtime-version="] != runtime:
        raise Refused(f"{flags['--runtime-version=']} is no software for {type}")
    if machine and flags["--image-family="] != REFERENCE["images"].get(machine):
        raise Refused(f"{flags['--image-family=']} is no image for {machine}")
    if machine and flags["--maintenance-policy="] != "TERMINATE":
        raise Refused("a machine with TPUs does not migrate")


class Cloud(socketserver.ThreadingTCPServer):
    """What gcloud talks to.

    Attributes:
      calls: of gcloud, each as its words.
      resources: the flags with which each was created, by "KIND NAME".
      answers: dicts that each replace what the cloud would do for a call that contains `match`:
        `stdout`, `stderr` and the exit code `code`, given `once` or always, after `delay` seconds
        and as soon as another call contains `until`.
      refusals: of calls.
    """

    daemon_threads, request_queue_size = True, 100

    def __init__(self, directory):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.resources, self.answers, self.refusals = [], {}, [], []
        self.changed = threading.Condition()
        client = directory / "gcloud"
        client.write_text(CLIENT.format(port=self.server_address[1]))
        client.chmod(0o755)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def call(self, words):
        """(exit code, stdout, stderr)"""
        line = " ".join(words)
        with self.changed:
            self.calls.append(words)
            self.changed.notify_all()
            try:
                call = parsed(words)
                check(*call)
                if answer := next((a for a in self.answers if a["match"] in line), None):
                    if answer.get("once"):
                        self.answers.remove(answer)
                    self.changed.wait_for(lambda: False, answer.get("delay", 0))
                    if until := answer.get("until"):
                        self.changed.wait_for(lambda: any(until in c for c in self.lines()))
                    return answer.get("code", 0), answer.get("stdout", ""), answer.get("stderr", "")
                return self._act(*call)
            except Refused as refused:
                self.refusals.append(f"{line}: {refused}")
                return 2, "", f"ERROR: (gcloud) {refused}"

    def lines(self):
        return [" ".join(words) for words in self.calls]

    def _act(self, command, positional, flags):
        group, _, verb = command.rpartition(" ")
        if verb == "workload-policy":
            group, verb = "compute resource-policies", "create"
        kind, name = KINDS.get(group), positional[0]
        found = f"{kind} {name}" in self.resources
        if kind == "instance":  # or one of a group
            found = found or f"group {name.rpartition('-')[0]}" in self.resources
        if kind and found != (verb != "create"):
            state = "already exists" if found else "was not found"
            return 1, "", f"ERROR: The resource '{kind}s/{name}' {state}"
        if kind and verb == "create":
            if kind == "group":
                self._check_group(name, flags)
            self.resources[f"{kind} {name}"] = flags
        elif kind and verb == "delete":
            if any(kind in NEEDS.get(x.split()[0], ()) for x in self.resources):
                return 1, "", f"ERROR: The {kind} '{name}' is already being used"
            del self.resources[f"{kind} {name}"]
        elif verb == "list-instances":
            size = int(self.resources[f"group {name}"]["--size="])
            each = f"{name}-{{}}" if "basename" in flags.get("--format=", "") else "RUNNING"
            return 0, "".join(f"{each}\n".format(i) for i in reversed(range(size))), ""
        format = flags.get("--format=", "")
        return 0, next((state for field, state in STATES.items() if field in format), ""), ""

    def _check_group(self, name, flags):
        """Raises Refused unless the hosts of a new group are a slice."""
        if flags.get("--target-size-policy-mode=") != "bulk":
            raise Refused("a group with an accelerator topology needs the mode bulk")
        policy = re.fullmatch("regions/(.*)/resourcePolicies/(.*)", flags["--workload-policy="])
        made = self.resources.get(f"policy {policy and policy[2]}")
        if not made or made["--region="] != policy[1] or policy[1] not in flags["--zone="]:
            raise Refused(f"there is no policy {flags['--workload-policy=']} for the zone")
        machine = self.resources[f"template {flags['--template=']}"]["--machine-type="]
        chips = int(flags["--size="]) * int(machine.rpartition("-")[2].removesuffix("t"))
        topology = made["--accelerator-topology="]
        if math.prod(map(int, topology.split("x"))) != chips:
            raise Refused(f"{flags['--size=']} x {machine} are not {topology}")


class Handler(socketserver.StreamRequestHandler):
    """One call of gcloud."""

    def handle(self):
        data = b""
        while (parts := data.split(b"\0"))[0] == data or len(parts) < int(parts[0]) + 2:
            if not (more := self.rfile.read1()):
                return
            data += more
        code, *texts = self.server.call([part.decode() for part in parts[1:-1]])
        answer = (code, *(text and text.removesuffix("\n") + "\n" for text in texts))
        with contextlib.suppress(OSError):  # that call was interrupted
            self.wfile.write(b"".join(f"{part}\0".encode() for part in answer))
