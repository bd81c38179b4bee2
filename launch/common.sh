# shellcheck shell=bash
# Sourced by the scripts of these folders: flags, errors, and `run`, which does a command or prints it. Nothing here needs
# more than the bash 3.2 of a Mac.

dry_run=

die() { # one line, and the exit code of bad usage
    echo "error: $*" >&2
    exit 2
}

usage() { # the comment at the head of the script
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# flags "VALUES" "SWITCHES" "$@": --a-b=X sets a_b=X for a-b among VALUES, --c sets c=1 for c among SWITCHES. What comes
# behind -- is the array `rest`; anything else is refused. All scripts take --dry-run and --help.
flags() {
    local values_=" $1 " switches_=" $2 dry-run " flag_ # no script has a flag of such a name
    shift 2
    rest=()
    while (($#)); do
        flag_=${1#--}
        flag_=${flag_%%=*}
        case "$1" in
        --help | -h) usage && exit ;;
        --)
            shift
            rest=("$@")
            return
            ;;
        --*=*)
            [[ $values_ == *" $flag_ "* ]] || die "unknown flag --$flag_=...; --help lists them"
            printf -v "${flag_//-/_}" %s "${1#*=}"
            ;;
        --*)
            [[ $values_ != *" $flag_ "* ]] || die "--$flag_ needs a value: --$flag_=..."
            [[ $switches_ == *" $flag_ "* ]] || die "unknown flag --$flag_; --help lists them"
            printf -v "${flag_//-/_}" 1
            ;;
        *) die "unexpected argument '$1'; flags are written --name=value, a command comes behind --" ;;
        esac
        shift
    done
}

need() { # need FLAG...: these must have a value
    local flag_
    for flag_; do [[ -n "${!flag_-}" ]] || die "--${flag_//_/-}=... is required; --help says more"; done
}

quoted() { # the words as a shell reads them again, as plain as they can be
    local word flag out=() plain='^[A-Za-z0-9_@%+=:,./^-]+$' odd='[$`"\!]'
    for word; do
        if [[ ! $word =~ $plain ]]; then
            flag='' # of --flag='a value', only the value is quoted
            [[ ! $word =~ ^--[A-Za-z0-9_.-]+= ]] || flag=${BASH_REMATCH[0]}
            word=${word#"$flag"}
            if [[ $word == *\'* && ! $word =~ $odd ]]; then
                word=$flag\"$word\"
            else
                word=$flag\'$(printf %s "$word" | sed "s/'/'\\\\''/g")\'
            fi
        fi
        out+=("$word")
    done
    printf %s "${out[*]}"
}

run() { # does the command, or with --dry-run prints it, to be pasted
    if [[ -n $dry_run ]]; then
        quoted "$@"
        echo
    else
        "$@"
    fi
}
