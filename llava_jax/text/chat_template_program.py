"""The program of the child process that renders a chat template. `chat_template_process` starts it.

The template is a program of others, so everything is limited before it is read: CPU time, memory, open files, written
files, processes. It imports nothing of this package, which would cost seconds.

Arguments: the folders of jinja2 and markupsafe. Standard input: JSON, see `main`. Standard output: a byte when ready,
then a JSON list with [text, error] for each conversation, one of them "".
"""

import contextlib
import datetime
import json
import resource
import signal
import sys

if __name__ == "__main__":
    sys.path += sys.argv[1:]  # isolated mode (-I -S) has neither site-packages nor PYTHONPATH

import jinja2  # noqa: E402
import jinja2.debug  # noqa: E402, F401  (imported on the first error otherwise, when no file can be opened any more)
from jinja2.ext import Extension, loopcontrols  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

CPU_SECONDS = 0.5
MEMORY, OUTPUT = 512 * 2**20, 2**20  # bytes
TODAY = datetime.datetime(2024, 7, 26)  # the date that Llama 3.1's template has where it is given none


class GenerationTag(Extension):
    """`{% generation %}`, with which transformers marks what is trained on: its body is rendered."""

    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def limit() -> None:
    """Limits this process; a limit that the system does not have is left out."""
    # The kernel then ends the process, in a C loop too. A child inherits that its parent ignores or blocks the signal.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPROF])
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    sizes = {"RLIMIT_CPU": 2, "RLIMIT_AS": MEMORY}
    sizes |= dict.fromkeys(("RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_CORE"), 0)
    for name, size in sizes.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (size, size))


def environment() -> ImmutableSandboxedEnvironment:
    """The environment in which transformers renders chat templates, without loaders and with a fixed date."""

    def raise_exception(message: str):
        raise jinja2.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols])
    made.filters["tojson"] = tojson
    made.globals = {name: made.globals[name] for name in ("range", "dict", "namespace")}
    made.globals |= {"raise_exception": raise_exception, "strftime_now": lambda form: TODAY.strftime(form)}
    return made


def render_all(jinja: ImmutableSandboxedEnvironment, request: dict) -> list[list[str]]:
    """Returns [text, error] for each conversation of a request, see `main`."""
    results, fault = [], None
    try:
        template = jinja.from_string(request["template"])
    except Exception as error:
        fault = error
    for conversation in request["conversations"]:
        text = ""
        try:
            if fault:
                raise fault
            for piece in template.generate(**request["variables"], **conversation):
                text += piece
                if len(text) > OUTPUT:
                    raise ValueError("it writes more than 1 MiB")
            results.append([text, ""])
        except Exception as error:
            results.append(["", f"{type(error).__name__}: {error}"[:200]])
    return results


def main() -> None:
    """Standard input has "template", "variables" (bos_token, ..) and "conversations" ("messages", ..)."""
    jinja = environment()
    jinja.from_string("{{ '\\n' ~ [1] | tojson }}{% for x in [] %}{% break %}{% endfor %}").render()  # imports codecs
    sys.stdout.buffer.write(b"r")
    sys.stdout.buffer.flush()
    request = json.load(sys.stdin.buffer)
    limit()
    sys.stdout.buffer.write(json.dumps(render_all(jinja, request)).encode())


if __name__ == "__main__":
    main()
