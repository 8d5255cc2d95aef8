#!/bin/sh
# Fetch the libraries that the page uses at the newest versions of their packages, or at those given: update.sh marked@18.2.1
# Needs npm. Run it anywhere, look at the difference, and run tests/browser before it is committed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '{"private": true}' > package.json
npm install --silent --ignore-scripts --no-package-lock preact htm marked dompurify "$@"
cd node_modules

take() { # package, file in it, name here
    # browsers resolve no bare names, and there are no source maps here
    sed -e 's|from *"preact"|from"./preact.js"|' -e '/^\/\/# sourceMappingURL=/d' "$1/$2" > "$here/$3.js"
    cp "$1/LICENSE" "$here/$3.LICENSE"
}
take preact dist/preact.mjs preact
take preact hooks/dist/hooks.mjs hooks
take htm dist/htm.module.js htm
take marked lib/marked.esm.js marked
take dompurify dist/purify.es.mjs purify
rm "$here/hooks.LICENSE"

version() { node -p "require('./$1/package.json').version"; }
{
    echo '# Vendored modules'
    echo
    echo 'Written by `update.sh`; nothing here is edited by hand. The only changes to what the packages hold: the bare import of'
    echo '`preact` is made relative, and the lines that name source maps are gone.'
    echo
    echo '| file | npm package | version | licence |'
    echo '|---|---|---|---|'
    echo "| \`preact.js\`, \`hooks.js\` | preact | $(version preact) | MIT, \`preact.LICENSE\` |"
    echo "| \`htm.js\` | htm | $(version htm) | Apache-2.0, \`htm.LICENSE\` |"
    echo "| \`marked.js\` | marked | $(version marked) | MIT, \`marked.LICENSE\` |"
    echo "| \`purify.js\` | dompurify | $(version dompurify) | MPL-2.0 or Apache-2.0, \`purify.LICENSE\` |"
} > "$here/README.md"
