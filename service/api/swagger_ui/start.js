// Shows openapi.yaml, which stands beside the page. The validator of swagger.io is asked nothing.
const root = new URL(".", document.baseURI).href.replace(/\/$/, "");

SwaggerUIBundle({
  url: "openapi.yaml",
  dom_id: "#docs",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  showCommonExtensions: true,
  validatorUrl: null,
  // The document names the root of the host as its server; a proxy may have put both below a path.
  requestInterceptor: (request) => {
    if (!request.loadSpec) {
      const { pathname, search } = new URL(request.url, document.baseURI);
      request.url = root + pathname + search;
    }
    return request;
  },
});
