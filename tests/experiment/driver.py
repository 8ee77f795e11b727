"""A process that has everything imported, runs no thread, and forks: each order runs the command in a child.

Orders come as lines of JSON on the standard input and are answered as lines of JSON. A child is over
when nobody holds its standard streams any more, so an orphan that it left would keep the answer back.
"""

import contextlib
import json
import os
import re
import resource
import selectors
import signal
import sys

PATIENCE = 120  # seconds; a child that takes longer hangs
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.listdir", "os.scandir")


def main():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell's '&', and children inherit that
    warm()
    for line in sys.stdin:
        print(json.dumps(carried_out(json.loads(line))), flush=True)


def warm():
    """Import what a run imports, once for all children."""
    import torch

    import consilience.cli.experiments
    import consilience.cli.progress
    import consilience.experiment.config
    import consilience.experiment.executors
    import consilience.reporting.html  # noqa: F401
    from consilience.component import KINDS

    torch.set_num_threads(1)
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    torch.optim.Adadelta([parameter]).step()  # imports the compiler; no backward pass, which would start threads
    for kind in KINDS.values():
        kind.names()


def carried_out(order):
    """The exit code, negative after a signal, and what the child wrote."""
    out, err = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        for number, (_, end) in ((1, out), (2, err)):
            os.dup2(end, number)
        for end in (*out, *err):
            os.close(end)
        os._exit(obey(order))
    with contextlib.suppress(OSError):
        os.setpgid(child, child)
    os.close(out[1])
    os.close(err[1])
    written = heard({out[0]: "out", err[0]: "err"}, child, order.get("signal"))
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), **written}


def heard(streams, child, number):
    """All that is written until everybody has closed the streams; a run's first line may be answered by a signal.

    An interruption goes to the child and to all that it started, as Ctrl-C in a terminal does.
    """
    written = {"out": b"", "err": b"", "hung": False}
    with selectors.DefaultSelector() as selector:
        for stream, name in streams.items():
            selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(PATIENCE)
            if not ready:
                written["hung"] = True
                os.killpg(child, signal.SIGKILL)
            for key, _ in ready:
                content = os.read(key.fd, 65536)
                written[key.data] += content
                if not content:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                elif number and re.search(rb"\[\d+/\d+\] .*\n", written["err"]):
                    (os.killpg if number == signal.SIGINT else os.kill)(child, number)
                    number = None
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in written.items()}


def obey(order):
    from consilience.cli.main import call

    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(order.get("environment", {}))
    if "largest_file" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest_file"], resource.RLIM_INFINITY))
    events = counted(order["watch"], order.get("die_at")) if "watch" in order else None
    try:
        code = call(order["words"][0], order["words"][1:])
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 99
    if events is not None:
        print(f"events {events[0]}")
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def counted(folder, last):
    """Count what happens to files below a folder; at the last event that is wanted the process is killed before it."""
    seen = [0]

    def count():
        seen[0] += 1
        if seen[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(folder):
            count()

    sync = os.fsync

    def counting_sync(file):  # tells of no event of its own, and stands between content and name
        count()
        sync(file)

    os.fsync = counting_sync
    sys.addaudithook(hook)
    return seen


if __name__ == "__main__":
    main()
