"""Make the completions of bash, zsh and fish of the usage text: python completion/make.py DIR."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import textwrap
from typing import TYPE_CHECKING

from conntrack_textfile.errors import UsageError
from conntrack_textfile.kernel.namespace import DIRECTORY as NAMESPACES
from conntrack_textfile.options import REPEATED, described, parse, usage

if TYPE_CHECKING:
    from conntrack_textfile.options import Described

PROGRAM = "conntrack-textfile"
COMMANDS = dict(
    re.findall(
        r"^  (\w+)  +(.*?)[.,]",
        usage("write", "serve", "top", "check").partition("\nCommands:\n")[2].partition("\n\n")[0],
        re.MULTILINE,
    )
)
WITH_FILE = [command for command in COMMANDS if f" {command} [FILE] " in usage(command)]
MADE = f"made by completion/make.py of the usage text of {PROGRAM}"


def choices(command: str, option: Described) -> tuple[list[str], bool]:
    """The words that an option takes, and whether it takes several: what it says of a wrong one."""
    if option.value:
        with contextlib.suppress(UsageError):
            try:
                parse([command, f"{option.names[-1]}=?"])
            except UsageError as error:
                if one := re.search(r" must be one of (.*), not '\?'$", str(error)):
                    return one[1].split(", "), False
                if some := re.search(r" takes some of (.*), not '\?'$", str(error)):
                    return some[1].split(","), True
    return [], False


def is_file(option: Described) -> bool:
    """Whether the value is the name of a file."""
    return option.value == "FILE"


def short(option: Described) -> str:
    """The beginning of what is said of an option, for a line of a terminal."""
    return textwrap.shorten(re.split(r"[.;:] ", option.text)[0], 72, placeholder="...")


def bash() -> str:
    """The completion of bash, which needs no other file."""
    options, words = [], {}
    for command in COMMANDS:
        names = []
        for option in described(command):
            for name in option.names:
                glued = "=" if option.value and name.startswith("--") else ""
                names.append(f"{name}{glued}")
            taken, several = choices(command, option)
            kind = "list" if several else "words"
            value = f"{kind} {' '.join(taken)}" if taken else ""
            value = "files" if is_file(option) else "folders" if option.value == "DIR" else value
            value = "groups" if option.names[-1] == "--file.group" else value
            value = "namespaces" if option.names[-1] == "--netns" else value
            if option.value:
                words[option.names[-1]] = value or "none"
        options.append(f"        {command}) options={shlex.quote(' '.join(names))} ;;")
    cases = [f"        {name}) kind={shlex.quote(kind)} ;;" for name, kind in words.items()]
    lines = "\n".join(cases)
    takes = " ".join(words)
    return f"""\
# Completion for bash, {MADE}.
_conntrack_textfile()
{{
    # Not COMP_WORDS, which are split at = too.
    local line=${{COMP_LINE:0:COMP_POINT}}
    local -a words
    read -ra words <<<"$line"
    local current=""
    [[ $line == *[[:space:]] ]] || current=${{words[-1]}}
    [[ -z $current ]] || unset 'words[-1]'
    local before=${{words[-1]}} command="" positional=0 word skip=""
    for word in "${{words[@]:1}}"; do
        if [[ -n $skip ]]; then
            skip=""
        elif [[ " {takes} " == *" $word "* ]]; then
            skip=1
        elif [[ $word != -* ]]; then
            [[ -n $command ]] || command=$word
            positional=$((positional + 1))
        fi
    done

    local options='-h --help -v -V --version'
    case $command in
{chr(10).join(options)}
    esac

    # The value of an option: --name=value, or the word after --name.
    local name="" value="" glue=""
    if [[ $current == --*=* ]]; then
        name=${{current%%=*}} value=${{current#*=}}
        # Where readline takes = for a part of the word, the answer has all of it.
        [[ $COMP_WORDBREAKS == *=* ]] || glue="$name="
    elif [[ -n $skip ]]; then
        name=$before value=$current
    fi
    COMPREPLY=()
    if [[ -n $name ]]; then
        local kind=none list=""
        case $name in
{lines}
        esac
        set -- $kind
        case $1 in
            files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$value") ;;
            folders) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$value") ;;
            groups) mapfile -t COMPREPLY < <(compgen -g -- "$value") ;;
            namespaces)
                # As ip-netns(8) names them.
                mapfile -t COMPREPLY < \
                    <(compgen -W "host all $(command ls {NAMESPACES} 2>/dev/null)" -- "$value")
                ;;
            words) mapfile -t COMPREPLY < <(compgen -W "${{*:2}}" -- "$value") ;;
            list)
                [[ $value != *,* ]] || list="${{value%,*}},"
                compopt -o nospace
                mapfile -t COMPREPLY < <(compgen -P "$list" -W "${{*:2}}" -- "${{value##*,}}")
                ;;
        esac
        COMPREPLY=("${{COMPREPLY[@]/#/$glue}}")
    elif [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
        [[ ${{#COMPREPLY[@]}} != 1 || ${{COMPREPLY[0]}} != *= ]] || compopt -o nospace
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "{" ".join(COMMANDS)}" -- "$current")
    elif [[ " {" ".join(WITH_FILE)} " == *" $command "* && $positional == 1 ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}}
complete -F _conntrack_textfile {PROGRAM}
"""


def zsh() -> str:
    """The completion of zsh, for a directory of fpath."""
    cases = []
    for command in COMMANDS:
        specs = []
        for option in described(command):
            taken, several = choices(command, option)
            action = " "
            if several:
                action = f"_values -s , {option.value} {' '.join(taken)}"
            elif taken:
                action = f"({' '.join(taken)})"
            elif is_file(option):
                action = "_files"
            elif option.value == "DIR":
                action = "_files -/"
            elif option.names[-1] == "--file.group":
                action = "_groups"
            elif option.names[-1] == "--netns":
                # As ip-netns(8) names them. (N) is for a directory that is empty or missing.
                action = f"{{compadd host all {NAMESPACES}/*(N\\:t)}}"
            text = re.sub(r"([\[\]:\\])", r"\\\1", short(option))
            for name in option.names:
                again = "*" if option.names[-1] in REPEATED else ""
                glued = "=" if option.value and name.startswith("--") else ""
                value = f":{option.value.partition('[')[0]}:{action}" if option.value else ""
                specs.append(shlex.quote(f"{again}{name}{glued}[{text}]{value}"))
        file = " '2:FILE:_files'" if command in WITH_FILE else ""
        inner = " \\\n            ".join(specs)
        cases.append(f"    {command})\n        specs+=({inner}{file})\n        ;;")
    commands = " ".join(f'{name}\\:"{text}"' for name, text in COMMANDS.items())
    return f"""\
#compdef {PROGRAM}
# Completion for zsh, {MADE}.
local -a specs
specs=({shlex.quote(f"1:command:(({commands}))")})
case ${{words[(r)({"|".join(COMMANDS)})]}} in
{chr(10).join(cases)}
    *)
        specs+=('(-h --help)'{{-h,--help}}'[Show the usage]' \\
            '(-v -V --version)'{{-v,-V,--version}}'[Show the version]')
        ;;
esac
_arguments -S "$specs[@]"
"""


def fish_value(command: str, option: Described) -> str:
    """What fish is told of the value of an option."""
    taken, several = choices(command, option)
    if several:
        return f" -x -a '(__fish_append , {' '.join(taken)})'"
    if taken:
        return f" -x -a '{' '.join(taken)}'"
    if is_file(option):
        return " -r -F"
    if option.value == "DIR":
        return " -x -a '(__fish_complete_directories)'"
    lists = {
        "--file.group": "(__fish_complete_groups)",
        "--netns": f"host all (command ls {NAMESPACES} 2>/dev/null)",
    }
    if found := lists.get(option.names[-1]):
        return f" -x -a '{found}'"
    return " -x" if option.value else ""


def fish() -> str:
    """The completion of fish."""

    def quoted(text: str) -> str:
        return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"

    no_command = f"not __fish_seen_subcommand_from {' '.join(COMMANDS)}"
    lines = [f"# Completion for fish, {MADE}.", f"complete -c {PROGRAM} -f"]
    lines += [
        f"complete -c {PROGRAM} -n '{no_command}' -a {name} -d {quoted(text)}"
        for name, text in COMMANDS.items()
    ]
    lines += [
        f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from {command}' -F"
        for command in WITH_FILE
    ]
    rows: dict[str, list[str]] = {}
    for command in COMMANDS:
        for option in described(command):
            names = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
                for name in option.names
            )
            row = f"{names}{fish_value(command, option)} -d {quoted(short(option))}"
            rows.setdefault(row, []).append(command)
    for row, commands in rows.items():
        condition = f"-n '__fish_seen_subcommand_from {' '.join(commands)}' "
        if len(commands) == len(COMMANDS) and not re.search(r" -[xr] ", row):
            condition = ""  # --help and --version need no command
        lines.append(f"complete -c {PROGRAM} {condition}{row}")
    return "\n".join(lines) + "\n"


FILES = {
    "conntrack-textfile.bash": bash,
    "_conntrack-textfile": zsh,
    "conntrack-textfile.fish": fish,
}


if __name__ == "__main__":
    for file, make in FILES.items():
        with open(os.path.join(sys.argv[1], file), "w", encoding="utf-8") as made:
            made.write(make())
