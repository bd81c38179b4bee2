# shellcheck shell=bash
# Sourced by the launch scripts: flags, errors, and `run`, which runs a command or prints it. Works with bash 3.2 (macOS).

dry_run=

die() { # prints one line; exit code 2: bad usage
    echo "error: $*" >&2
    exit 2
}

usage() { # prints the comment at the top of the script
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# flags "VALUES" "SWITCHES" "$@": --a-b=X sets a_b=X for a-b among VALUES, --c sets c=1 for c among SWITCHES. Arguments
# after -- go to the array `rest`; all others are refused. All scripts take --dry-run and --help.
flags() {
    local values_=" $1 " switches_=" $2 dry-run " flag_ # no flag has a name that ends in _
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
        *) die "unexpected argument '$1'; write flags as --name=value, and flags of the program after --" ;;
        esac
        shift
    done
}

need() { # need FLAG...: fails unless each has a value
    local flag_
    for flag_; do [[ -n "${!flag_-}" ]] || die "--${flag_//_/-}=... is required; see --help"; done
}

quoted() { # prints the arguments quoted for a shell, only where needed
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

run() { # runs the command, or with --dry-run prints it, ready to paste
    if [[ -n $dry_run ]]; then
        quoted "$@"
        echo
    else
        "$@"
    fi
}
