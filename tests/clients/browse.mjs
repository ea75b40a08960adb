// Clicks through refshim's web page in Chromium without script, and has axe look at every page, in light, dark and
// narrow. Its argument: {"base", "user", "index", "sbom", "hostile", "shots"}; with "shots", every page is pictured there.
// It runs in the directory that node_modules is in.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import process from "node:process";

const require = createRequire(`${process.cwd()}/`);
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const { base, user, index, sbom, hostile, shots } = JSON.parse(process.argv[2]);
const at = "/registry/default";
const NARROW = { width: 360, height: 740 };
const WIDE = { width: 1280, height: 900 };

// The pages that are looked at, by the name of their picture. `status` is 200 unless it says otherwise.
const pages = [
  { name: "search", path: "/" },
  { name: "health", path: "/health" },
  { name: "empty", path: at + "/image?image=empty:v1" },
  { name: "image", path: at + "/image?image=app:v1" },
  { name: "graph", path: at + "/graph?image=app:v1" },
  { name: "referrer", path: `${at}/referrer?image=app@${sbom}` },
  { name: "places", path: `${at}/digest?image=${encodeURIComponent(index)}` },
  { name: "coverage", path: at + "/coverage?image=app:v1" },
  { name: "many", path: at + "/image?image=many:v1" },
  { name: "many-graph", path: at + "/graph?image=many:v1" },
  { name: "hostile", path: at + "/image?image=hostile:v1" },
  { name: "hostile-graph", path: at + "/graph?image=hostile:v1" },
  { name: "hostile-referrer", path: `${at}/referrer?image=hostile@${hostile}` },
  { name: "error", path: at + "/image?image=app:unknown", status: 404 },
  { name: "malformed", path: at + "/image?image=A:b:c", status: 400 },
];

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  // Root in a container has no sandbox, and /dev/shm there is small.
  args: ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
});
try {
  await click();
  for (const [look, colorScheme, viewport] of [
    ["light", "light", WIDE],
    ["dark", "dark", WIDE],
    ["narrow", "light", NARROW],
  ]) {
    await lookAt(look, { colorScheme, viewport });
  }
} finally {
  await browser.close();
}

// A visitor with the keyboard and the mouse, who runs no scripts.
async function click() {
  const context = await browser.newContext({ httpCredentials: user, javaScriptEnabled: false });
  const page = await context.newPage();
  const heading = (text) => page.getByRole("heading", { level: 1 }).filter({ hasText: text }).waitFor();
  await page.goto(base);
  // The first stop of the keyboard leads past the navigation.
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  assert.equal(new URL(page.url()).hash, "#main");
  await page.getByLabel("Image").fill("app:v1");
  await page.getByRole("button", { name: "Show" }).click();
  await heading("app:v1");
  assert.equal(await page.getByText(index, { exact: true }).count(), 1);
  await page.getByRole("table").getByRole("link", { name: sbom.slice(0, 19) }).click();
  await heading(sbom);
  await page.getByRole("rowheader", { name: "org.example.author" }).waitFor();
  await page.getByText("sbom.spdx.json").waitFor();
  await page.goBack();
  await page.getByRole("link", { name: "Graph", exact: true }).click();
  await heading(index);
  // A node, by the keyboard.
  await page.locator("svg a").filter({ hasText: sbom.slice(0, 19) }).focus();
  await page.keyboard.press("Enter");
  await heading(sbom);
  // What it is about: a part of the index, which says who lists it.
  await page.getByRole("listitem").getByRole("link", { name: "sha256:" }).click();
  await page.getByRole("heading", { name: "Listed by" }).waitFor();
  await page.getByRole("link", { name: "Coverage" }).click();
  await page.getByRole("heading", { name: "How far" }).waitFor();
  // A digest without the repository that it is in.
  await page.getByRole("link", { name: "Search" }).click();
  await page.getByLabel("Image").fill(index);
  await page.getByRole("button", { name: "Show" }).click();
  await heading(index);
  await page.getByRole("listitem").getByRole("link", { name: "app", exact: true }).click();
  await heading(`app@${index}`);
  await page.goto(`${base}${at}/image?image=many:v1`);
  await page.getByRole("link", { name: "Next page" }).click();
  await page.getByRole("link", { name: "First page" }).waitFor();
  await context.close();
}

async function lookAt(look, options) {
  const context = await browser.newContext({ httpCredentials: user, ...options });
  const page = await context.newPage();
  const complaints = [];
  // Whatever the policy (CSP) has to forbid should not be there in the first place.
  page.on("console", (message) => complaints.push(message.text()));
  page.on("dialog", (dialog) => {
    complaints.push(`a dialog: ${dialog.message()}`);
    return dialog.dismiss();
  });
  page.on("request", (request) => {
    if (!request.url().startsWith(base)) complaints.push(`a request to ${request.url()}`);
  });
  for (const { name, path, status = 200 } of pages) {
    const response = await page.goto(base + path);
    assert.equal(response.status(), status, path);
    const { overflow, text } = await page.evaluate(() => ({
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      text: getComputedStyle(document.body).fontFamily,
    }));
    // Tables scroll by themselves; the page never does sideways.
    assert.ok(overflow <= 0, `${name}, ${look}: ${overflow} pixels too wide`);
    assert.ok(text.includes("sans-serif"), "the stylesheet is not in use");
    if (shots) await page.screenshot({ path: `${shots}/${name}-${look}.png`, fullPage: false });
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => globalThis.axe.run(document));
    const told = violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).slice(0, 3)}`);
    assert.deepEqual(told, [], `${name}, ${look}`);
  }
  // The 404 and the 400 are errors to the console, too.
  assert.deepEqual(complaints.filter((text) => !text.includes("the server responded with a status of 40")), []);
  await context.close();
}
