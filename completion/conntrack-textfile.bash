# Completion for bash, made by completion/make.py of the usage text of conntrack-textfile.
_conntrack_textfile()
{
    # Not COMP_WORDS, which are split at = too.
    local line=${COMP_LINE:0:COMP_POINT}
    local -a words
    read -ra words <<<"$line"
    local current=""
    [[ $line == *[[:space:]] ]] || current=${words[-1]}
    [[ -z $current ]] || unset 'words[-1]'
    local before=${words[-1]} command="" positional=0 word skip=""
    for word in "${words[@]:1}"; do
        if [[ -n $skip ]]; then
            skip=""
        elif [[ " --file.mode --file.group --state.file --collector.source --collector.families --collector.nat --filter.include --filter.exclude --aggregate.by --aggregate.src-prefix --aggregate.dst-prefix --aggregate.ports --aggregate.mark-mask --networks.file --hosts.file --services.file --limit.keys --limit.by --nat.destinations --netns --path.procfs --log.level --log.format --collector.interval --collector.event-buffer --web.listen-address --web.telemetry-path --web.max-requests --web.config.file -n " == *" $word "* ]]; then
            skip=1
        elif [[ $word != -* ]]; then
            [[ -n $command ]] || command=$word
            positional=$((positional + 1))
        fi
    done

    local options='-h --help -v -V --version'
    case $command in
        write) options='--file.mode= --file.group= --state.file= --collector.source= --collector.families= --configure.nf_conntrack_acct --collector.nat= --filter.include= --filter.exclude= --aggregate.by= --aggregate.src-prefix= --aggregate.dst-prefix= --aggregate.ports= --aggregate.mark-mask= --networks.file= --hosts.file= --services.file= --limit.keys= --limit.by= --nat.destinations= --netns= --path.procfs= --log.level= --log.format= -h --help -v -V --version' ;;
        serve) options='--collector.interval= --collector.event-buffer= --state.file= --web.listen-address= --web.telemetry-path= --web.disable-exporter-metrics --web.max-requests= --web.config.file= --web.systemd-socket --collector.source= --collector.families= --configure.nf_conntrack_acct --collector.nat= --filter.include= --filter.exclude= --aggregate.by= --aggregate.src-prefix= --aggregate.dst-prefix= --aggregate.ports= --aggregate.mark-mask= --networks.file= --hosts.file= --services.file= --limit.keys= --limit.by= --nat.destinations= --netns= --path.procfs= --log.level= --log.format= -h --help -v -V --version' ;;
        top) options='-n --watch --collector.interval= --collector.source= --collector.families= --configure.nf_conntrack_acct --collector.nat= --filter.include= --filter.exclude= --aggregate.by= --aggregate.src-prefix= --aggregate.dst-prefix= --aggregate.ports= --aggregate.mark-mask= --networks.file= --hosts.file= --services.file= --limit.keys= --limit.by= --nat.destinations= --netns= --path.procfs= --log.level= --log.format= -h --help -v -V --version' ;;
        check) options='--file.mode= --file.group= --state.file= --collector.interval= --collector.event-buffer= --web.listen-address= --web.telemetry-path= --web.disable-exporter-metrics --web.max-requests= --web.config.file= --web.systemd-socket --collector.source= --collector.families= --configure.nf_conntrack_acct --collector.nat= --filter.include= --filter.exclude= --aggregate.by= --aggregate.src-prefix= --aggregate.dst-prefix= --aggregate.ports= --aggregate.mark-mask= --networks.file= --hosts.file= --services.file= --limit.keys= --limit.by= --nat.destinations= --netns= --path.procfs= --log.level= --log.format= -h --help -v -V --version' ;;
    esac

    # The value of an option: --name=value, or the word after --name.
    local name="" value="" glue=""
    if [[ $current == --*=* ]]; then
        name=${current%%=*} value=${current#*=}
        # Where readline takes = for a part of the word, the answer has all of it.
        [[ $COMP_WORDBREAKS == *=* ]] || glue="$name="
    elif [[ -n $skip ]]; then
        name=$before value=$current
    fi
    COMPREPLY=()
    if [[ -n $name ]]; then
        local kind=none list=""
        case $name in
        --file.mode) kind=none ;;
        --file.group) kind=groups ;;
        --state.file) kind=files ;;
        --collector.source) kind='words auto procfs netlink' ;;
        --collector.families) kind='list live traffic' ;;
        --collector.nat) kind='words on off' ;;
        --filter.include) kind=none ;;
        --filter.exclude) kind=none ;;
        --aggregate.by) kind='list src dst l3protocol l4protocol l7protocol dport zone mark egress backend' ;;
        --aggregate.src-prefix) kind=none ;;
        --aggregate.dst-prefix) kind=none ;;
        --aggregate.ports) kind='words all known' ;;
        --aggregate.mark-mask) kind=none ;;
        --networks.file) kind=files ;;
        --hosts.file) kind=files ;;
        --services.file) kind=files ;;
        --limit.keys) kind=none ;;
        --limit.by) kind='words bytes packets connections' ;;
        --nat.destinations) kind=none ;;
        --netns) kind=namespaces ;;
        --path.procfs) kind=folders ;;
        --log.level) kind='words debug info warn error' ;;
        --log.format) kind='words logfmt json' ;;
        --collector.interval) kind=none ;;
        --collector.event-buffer) kind=none ;;
        --web.listen-address) kind=none ;;
        --web.telemetry-path) kind=none ;;
        --web.max-requests) kind=none ;;
        --web.config.file) kind=files ;;
        -n) kind=none ;;
        esac
        set -- $kind
        case $1 in
            files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$value") ;;
            folders) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$value") ;;
            groups) mapfile -t COMPREPLY < <(compgen -g -- "$value") ;;
            namespaces)
                # As ip-netns(8) names them.
                mapfile -t COMPREPLY <                     <(compgen -W "host all $(command ls /run/netns 2>/dev/null)" -- "$value")
                ;;
            words) mapfile -t COMPREPLY < <(compgen -W "${*:2}" -- "$value") ;;
            list)
                [[ $value != *,* ]] || list="${value%,*},"
                compopt -o nospace
                mapfile -t COMPREPLY < <(compgen -P "$list" -W "${*:2}" -- "${value##*,}")
                ;;
        esac
        COMPREPLY=("${COMPREPLY[@]/#/$glue}")
    elif [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
        [[ ${#COMPREPLY[@]} != 1 || ${COMPREPLY[0]} != *= ]] || compopt -o nospace
    elif [[ -z $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "write serve top check" -- "$current")
    elif [[ " write check " == *" $command "* && $positional == 1 ]]; then
        compopt -o filenames
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
    fi
}
complete -F _conntrack_textfile conntrack-textfile
