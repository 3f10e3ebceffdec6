// Runs where @grafana/schema is installed: a dashboard against the types that Grafana publishes.
//     node grafana_schema.mjs BOARD
// Grafana's types become JSON schemas, in which a property that nobody declared is an error: the
// whole dashboard, then each panel's options and field settings by the types of its own plugin.
import { readFileSync } from 'node:fs';
import Ajv from 'ajv';
import { createGenerator } from 'ts-json-schema-generator';

const TYPES = 'node_modules/@grafana/schema/dist/types/raw';
const board = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const faults = [];

function check(file, type, value, where) {
  const path = `${TYPES}/${file}/x/types.gen.d.ts`;
  const options = { path, type, skipTypeCheck: true, tsconfig: 'tsconfig.json' };
  const validate = new Ajv({ strict: false, allErrors: true }).compile(
    createGenerator(options).createSchema(type),
  );
  if (validate(value)) return;
  for (const { instancePath, message, params } of validate.errors) {
    faults.push(`${where}${instancePath} ${message} ${JSON.stringify(params)}`);
  }
}

check('dashboard', 'Dashboard', board, '');
let panels = 0;
for (const { type, title, options, fieldConfig } of board.panels) {
  if (type === 'row') continue;
  panels += 1;
  check(`composable/${type}/panelcfg`, 'Options', options, `${title} options`);
  const { custom } = fieldConfig.defaults;
  if (custom) check(`composable/${type}/panelcfg`, 'FieldConfig', custom, `${title} custom`);
}
console.log(JSON.stringify({ panels, faults }));
