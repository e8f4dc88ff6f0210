import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

const PACKED = /\.(js|css|svg)$/;

/** Packs the assets beside themselves, so that the gateway sends them without work. */
function packed(): Plugin {
  return {
    name: "packed",
    apply: "build",
    closeBundle() {
      const folder = join(import.meta.dirname, "dist", "assets");
      for (const name of readdirSync(folder)) {
        if (!PACKED.test(name)) continue;
        const content = readFileSync(join(folder, name));
        const brotli = { params: { [constants.BROTLI_PARAM_QUALITY]: 9 } };
        writeFileSync(join(folder, `${name}.br`), brotliCompressSync(content, brotli));
        writeFileSync(join(folder, `${name}.gz`), gzipSync(content, { level: 9 }));
      }
    },
  };
}

export default defineConfig({
  plugins: [react(), packed()],
  build: {
    target: "es2023",
    // Everything is a file of its own: the policy of the page lets no address in a style sheet run.
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    sourcemap: false,
    chunkSizeWarningLimit: 900,
  },
  server: {
    // `npm run dev` beside a running platform: DFLARE_URL is what `dflare status` prints as api.
    proxy: Object.fromEntries(
      ["/v1", "/oauth", "/.well-known"].map((path) => [
        path,
        { target: process.env["DFLARE_URL"] ?? "http://127.0.0.1:8080", ws: true },
      ]),
    ),
  },
});
