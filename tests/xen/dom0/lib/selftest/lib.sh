# What Linux's selftests source as their lib.sh, as it is found first in PATH: theirs, with a line for each function of a test.
source /selftests/tools/testing/selftests/net/forwarding/lib.sh
tests_run() {
    local function
    for function in ${TESTS:-$ALL_TESTS}; do
        echo "FUNCTION: $function"
        "$function"
    done
}
