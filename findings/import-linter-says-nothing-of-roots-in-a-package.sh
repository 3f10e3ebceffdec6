#!/usr/bin/env bash
# import-linter 2.16 with grimp 3.19: roots that lie in a regular package end it without a word.
#
# Guess: several packages of one distribution (`shop.web`, `shop.store`) can be the root_packages of
# import contracts, whether or not `shop` itself has an __init__.py; and if not, the tool says why.
# Seen, with import-linter == 2.16 and grimp == 3.19 from PyPI: while `shop` is a namespace package
# (no __init__.py) the contracts are checked. With an empty shop/__init__.py lint-imports ends with
# exit code 1 after its banner: no contract is named, no error is printed. Only --verbose --debug
# shows grimp's NotATopLevelModule. The same exit code means a broken contract.
#
# What follows: a check that reads the exit code alone takes this for a broken contract. Roots of a
# regular package are linted through a folder in which they stand as a namespace.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check import-linter==2.16 grimp==3.19
cd "$folder"
mkdir -p shop/web shop/store
touch shop/web/__init__.py shop/store/__init__.py
cat >.importlinter <<'INI'
[importlinter]
root_packages =
    shop.web
    shop.store

[importlinter:contract:down]
name = The store knows nothing of the web
type = forbidden
source_modules = shop.store
forbidden_modules = shop.web
INI

lint() {
    rm -rf .import_linter_cache
    code=0
    PYTHONPATH=. "$folder/venv/bin/lint-imports" "$@" >out 2>&1 || code=$?
    kept=$(grep -c "The store knows nothing of the web" out || true)
    named=$(grep -c "NotATopLevelModule" out || true)
    echo "exit $code, contract named: $((kept > 0)), cause named: $((named > 0))"
}

{
    echo "namespace: $(lint)"
    touch shop/__init__.py
    echo "package: $(lint)"
    echo "package, --verbose --debug: $(lint --verbose --debug)"
} | tee seen
diff seen - <<'SEEN' || { echo "this has changed"; exit 1; }
namespace: exit 0, contract named: 1, cause named: 0
package: exit 1, contract named: 0, cause named: 0
package, --verbose --debug: exit 1, contract named: 0, cause named: 1
SEEN
