// Keeps the page for use without a network. Only what the build made is kept: never an image, never another server.

const CACHE = "qcowkit-inspector-__VERSION__";
const FILES = [/* FILES */];
const KNOWN = new Set(FILES.map((file) => new URL(file, self.location).href));

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const old = (name) => name.startsWith("qcowkit-inspector-") && name !== CACHE;
  event.waitUntil(
    caches.keys().then((names) => Promise.all(names.filter(old).map((name) => caches.delete(name))))
      .then(() => self.clients.claim()),
  );
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  url.hash = "";
  url.search = "";
  const page = request.mode === "navigate" && url.href === new URL("./", self.location).href;
  const wanted = page ? new URL("index.html", self.location).href : url.href;
  // Requests for parts of files are those of images: they go where they are meant to go.
  if (request.method !== "GET" || request.headers.has("range") || !KNOWN.has(wanted)) {
    return;
  }
  event.respondWith(caches.match(wanted).then((kept) => kept ?? fetch(request)));
});
