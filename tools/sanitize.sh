#!/bin/sh
# The C core under AddressSanitizer and UndefinedBehaviorSanitizer, fed with random graphs:
#   tools/sanitize.sh [short|long]     2,000 or 100,000 altered files; needs a C compiler and the installed package
# CC, PYTHON and BUILD (a folder for what is built) can be set.
set -eu
cd "$(dirname "$0")/.."
form=${1:-short}
build=${BUILD:-build/sanitize}
case $form in
short) runs=2000 graphs=16 allocations=2 chains=300 folders=9 alterations=300 ;;
long) runs=100000 graphs=64 allocations=10 chains=10000 folders=20 alterations=5000 ;;
*) echo "usage: tools/sanitize.sh [short|long]" >&2; exit 2 ;;
esac
mkdir -p "$build/graphs" "$build/folders" "$build/altered"

# core FOLDER FLAG...: compiles the core, as many files at once as there are processors.
core() {
    folder=$1
    shift
    mkdir -p "$folder"
    find csrc -name "*.c" -not -path "*/tests/*" | xargs -P "$(nproc)" -I "{}" sh -c \
        'source=$1 folder=$2; shift 2; exec "$@" -c "$source" -o "$folder/$(echo "$source" | tr / _).o"' \
        sh "{}" "$folder" ${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 -g -Wall -Wextra -Icsrc "$@"
}
sanitize="-fsanitize=address,undefined -fno-sanitize-recover=all"
core "$build/core" $sanitize
for driver in torture board runtime; do
    ${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 -g -Wall -Wextra $sanitize -Icsrc -o "$build/$driver" \
        "csrc/tests/$driver.c" "$build"/core/*.o -lm -lpthread
done
# ThreadSanitizer, without OpenMP, whose barriers it cannot see.
core "$build/core_threads" -fsanitize=thread
${CC:-cc} -std=c11 -D_GNU_SOURCE -O1 -g -fsanitize=thread -Icsrc -o "$build/threads" \
    csrc/tests/runtime.c "$build"/core_threads/*.o -lm -lpthread
${PYTHON:-python} tests/runtime_folders.py "$build/folders" $folders
${PYTHON:-python} tests/random_graphs.py "$build/graphs" "$graphs"
export ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1:max_allocation_size_mb=4096:abort_on_error=1
export UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1
"$build/torture" run "$build"/graphs/*.dna.txt
"$build/torture" allocations $(ls "$build"/graphs/small_*.dna.txt | head -n $allocations) "$build/graphs/pair_000.dna.txt"
"$build/torture" fuzz 1 0 $runs "$build"/graphs/small_*.dna.txt
"$build/board" run "$build/boards" $(ls "$build"/graphs/small_*.dna.txt | head -n 4)
"$build/board" allocations "$build/boards" "$build/graphs/small_000.dna.txt"
"$build/board" fuzz "$build/boards" 1 $chains $(ls "$build"/graphs/small_*.dna.txt | head -n 4)
"$build/runtime" run "$build"/folders/*
"$build/runtime" errors "$build/folders/0"
"$build/runtime" allocations "$build"/folders/*
"$build/runtime" fuzz 1 0 $alterations "$build/altered" "$build"/folders/*
"$build/threads" run "$build"/folders/*
