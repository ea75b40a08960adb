// Attaches artifacts to an image with @sigstore/oci, all at once, and prints what became of them.
// Its argument: {"image", "digest", "artifacts": [{"mediaType", "content", "annotations"}], "credentials"}.
// It runs in the directory that node_modules is in.
import { createRequire } from "node:module";
import process from "node:process";

const { attachArtifactToImage } = createRequire(`${process.cwd()}/`)("@sigstore/oci");

const { image, digest, artifacts, credentials } = JSON.parse(process.argv[2]);
const attached = await Promise.all(
  artifacts.map(({ mediaType, content, annotations }) =>
    attachArtifactToImage({
      imageName: image,
      imageDigest: digest,
      artifact: Buffer.from(content),
      mediaType,
      annotations,
      credentials,
    }),
  ),
);
console.log(JSON.stringify(attached));
