
# `mayfly exec`: the names of the pipeline's jobs.
complete -c mayfly -n "__fish_seen_subcommand_from exec" -f -a "(mayfly exec --complete-jobs 2>/dev/null)"
complete -c mayfly -n "__fish_seen_subcommand_from exec" -l manual -x -a "(mayfly exec --complete-jobs 2>/dev/null)"
complete -c mayfly -n "__fish_seen_subcommand_from exec" -l explain -x -a "(mayfly exec --complete-jobs 2>/dev/null)"
