#!/bin/sh
# Print where the first of the named Pythons is that runs: on PATH, or else among those of pyenv, whose commands on
# PATH lead nowhere until they are switched on.
for name in "$@"; do
    for candidate in "$name" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$name"; do
        "$candidate" -c 'import sys; print(sys.executable)' 2>/dev/null && exit
    done
done
exit 1
