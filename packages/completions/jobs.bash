
# `mayfly exec`: the names of the pipeline's jobs beside the options.
_mayfly_with_jobs() {
    local line word previous colons name quoted
    local -a before
    _mayfly "$@"
    [[ ${COMP_WORDS[1]} == exec ]] || return
    # COMP_WORDS is split at colons, which are part of many names.
    line=${COMP_LINE:0:COMP_POINT}
    word=${line##*[[:space:]]}
    read -ra before <<<"${line%"$word"}"
    previous=${before[${#before[@]}-1]}
    case $previous in
        --manual | --explain) ;;
        --stage | --branch | --tag | --mr | --source | --before | --file | --var | --env | --vars-file | --secret | \
            --input | --map-* | --parallel | -j | --default-image | --artifacts | --report | --junit) return ;;
    esac
    [[ $word != -* ]] || return
    colons=
    [[ $COMP_WORDBREAKS != *:* ]] || colons=${word%"${word##*:}"}
    COMPREPLY=()
    while IFS= read -r name; do
        quoted=$(printf %q "$name")
        [[ $name != "$word"* && $quoted != "$word"* ]] || COMPREPLY+=("${quoted#"$colons"}")
    done < <(mayfly exec --complete-jobs 2>/dev/null)
}
complete -F _mayfly_with_jobs -o bashdefault -o default mayfly
