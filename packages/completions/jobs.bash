
# `mayfly exec`: the names of the pipeline's jobs beside the options.
_mayfly_with_jobs() {
    local name
    _mayfly "$@"
    if [[ ${COMP_WORDS[1]} == exec && $2 != -* ]]; then
        COMPREPLY=()
        while IFS= read -r name; do
            [[ $name != "$2"* ]] || COMPREPLY+=("$(printf %q "$name")")
        done < <(mayfly exec --complete-jobs 2>/dev/null)
    fi
}
complete -F _mayfly_with_jobs -o bashdefault -o default mayfly
