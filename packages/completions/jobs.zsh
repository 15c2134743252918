_mayfly_jobs() {
    local -a jobs
    jobs=("${(@f)$(mayfly exec --complete-jobs 2>/dev/null)}")
    compadd -a jobs
}

