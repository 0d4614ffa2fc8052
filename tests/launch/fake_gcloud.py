"""A gcloud that refuses what gcloud_reference.toml does not document, and knows what is there.

It is run with FAKE_GCLOUD=DIR, where it notes its `calls` and what it `refused`, has a file in
`made` for each thing that was made and not deleted, and finds `answers`: of those whose `match` is
in a call the first is given instead of its own.
"""

import json
import math
import os
import pathlib
import re
import sys
import time
import tomllib

REFERENCE = tomllib.loads(pathlib.Path(__file__).with_name("gcloud_reference.toml").read_text())
KINDS = {
    "compute tpus queued-resources": "queued resource",
    "compute instances": "instance",
    "compute instance-groups managed": "group",
    "compute instance-templates": "template",
    "compute resource-policies": "policy",
}
# What lists a thing, so that it cannot be deleted before that.
USERS = {"template": "group", "policy": "group"}


def parsed(words):
    """(command, positional arguments, flags) of a call.

    Raises:
      ValueError: its command is not in the reference.
    """
    positional = [word for word in words if not word.startswith("--")]
    flags = {}
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flags[name + equals] = value
    for length in range(len(positional), 0, -1):
        if (command := " ".join(positional[:length])) in REFERENCE:
            return command, positional[length:], flags
    raise ValueError(f"no such command: {' '.join(positional)}")


def check(command, positional, flags):
    """Raises ValueError for a call that the reference does not allow."""
    known = REFERENCE[command]
    required, values = known.get("required", []), known.get("values", {})
    allowed = {*required, *known.get("flags", []), *REFERENCE["gcloud"]["flags"]}
    if unknown := set(flags) - allowed:
        raise ValueError(f"unrecognized arguments: {unknown}")
    if missing := set(required) - set(flags):
        raise ValueError(f"argument {missing} must be specified")
    if len(positional) != known.get("positional", 1):
        raise ValueError(f"{command} takes {known.get('positional', 1)} arguments: {positional}")
    for name, choices in values.items():
        if flags.get(name, choices[0]) not in choices:
            raise ValueError(f"{name} is one of {choices}")
    generation = flags.get("--accelerator-type=", "").rpartition("-")[0]
    runtimes, images = REFERENCE["runtimes"], REFERENCE["images"]
    if generation and flags["--runtime-version="] != runtimes[generation]:
        raise ValueError(f"{flags['--runtime-version=']} is no software for {generation}")
    if "--machine-type=" in flags and flags["--image-family="] != images[flags["--machine-type="]]:
        raise ValueError(f"{flags['--image-family=']} is no image for it")
    if flags.get("--maintenance-policy=", "TERMINATE") != "TERMINATE":
        raise ValueError("TPUs cannot be migrated")


def check_group(name, flags, made):
    """Raises ValueError unless the hosts of a new group are a slice."""
    if flags.get("--target-size-policy-mode=") != "bulk":
        raise ValueError("MIGs with TPU accelerator topology require BULK mode")
    template = json.loads((made / f"template {flags['--template=']}").read_text())
    region, policy = re.fullmatch(
        "regions/(.*)/resourcePolicies/(.*)", flags["--workload-policy="]
    ).groups()
    policy = json.loads((made / f"policy {policy}").read_text())
    if not flags["--zone="].startswith(region) or policy["--region="] != region:
        raise ValueError(f"there is no policy in the region of {flags['--zone=']}")
    chips = int(flags["--size="]) * int(template["--machine-type="].rpartition("-")[2][:-1])
    if math.prod(map(int, policy["--accelerator-topology="].split("x"))) != chips:
        raise ValueError(f"{chips} chips are no {policy['--accelerator-topology=']}")


def act(command, positional, flags, made):
    """(exit code, stdout, stderr) of a call that is allowed."""
    group, _, verb = command.rpartition(" ")
    if verb == "workload-policy":
        group, verb = "compute resource-policies", "create"
    kind, name = KINDS.get(group), positional[0]
    thing = made / f"{kind} {name}"
    if kind and verb != "create" and not thing.exists():
        return 1, "", f"ERROR: The resource '{kind}s/{name}' was not found"
    if kind and verb == "create":
        if thing.exists():
            return 1, "", f"ERROR: The resource '{kind}s/{name}' already exists"
        if kind == "group":
            check_group(name, flags, made)
        thing.write_text(json.dumps(flags))
    elif verb == "delete":
        if (made / f"{USERS.get(kind)} {name}").exists():
            return 1, "", f"ERROR: The {kind} '{name}' is already being used"
        thing.unlink()
    elif verb == "list-instances":
        size = int(json.loads(thing.read_text())["--size="])
        of_each = "RUNNING" if "instanceStatus" in flags["--format="] else f"{name}-{{}}"
        return 0, "\n".join(of_each.format(i) for i in reversed(range(size))), ""
    format = flags.get("--format=", "")
    known = {
        "value(state.state": "ACTIVE",
        "networkEndpoints": "2",
        "value(state)": "READY",
        "value(status)": "RUNNING",
        "networkIP": "10.0.0.2",
        "value(location": "US-EAST5\tregion",
    }
    return 0, next((answer for field, answer in known.items() if field in format), ""), ""


def main(words):
    home = pathlib.Path(os.environ["FAKE_GCLOUD"])
    line = " ".join(words).replace("\n", " ")
    with (home / "calls").open("a") as calls:
        calls.write(line + "\n")
    try:
        call = parsed(words)
        check(*call)
        for number, answer in enumerate(json.loads((home / "answers").read_text())):
            used = home / f"used-{number}"
            if answer["match"] in line and not used.exists():
                if answer.get("once"):
                    used.touch()
                print(answer.get("stdout", ""), flush=True)
                print(answer.get("stderr", ""), file=sys.stderr, flush=True)
                while answer.get("until", "") not in (home / "calls").read_text():
                    time.sleep(0.01)
                return answer.get("code", 0)
        code, out, error = act(*call, home / "made")
    except ValueError as refused:
        (home / "refused").write_text(f"{line}: {refused}")
        code, out, error = 2, "", f"ERROR: (gcloud) {refused}"
    print(out)
    print(error, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
