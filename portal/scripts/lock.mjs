// Takes addresses out of the lock file: where a package may be had is each machine's own affair, and
// who asks for donations is no part of what is locked. Integrity hashes stay.
import { readFileSync, writeFileSync } from "node:fs";

const file = new URL("../package-lock.json", import.meta.url);
const lock = JSON.parse(readFileSync(file, "utf8"));
for (const [path, entry] of Object.entries(lock.packages)) {
  delete entry.funding;
  delete entry.deprecated;
  if (path && !entry.link && !entry.integrity) {
    throw new Error(`${path} has no integrity hash`);
  }
}
writeFileSync(file, `${JSON.stringify(lock, null, 2)}\n`);
