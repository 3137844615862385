// With the client that openapi-ts generates into ./client: list layers, upload a photograph, get one feature map as an
// array and as a picture, and read a refusal. Usage: node maps.js URL PHOTOGRAPH FOLDER
import { readFile, writeFile } from "node:fs/promises";
import { createImage, extractFeatures, getImageFeatures, getImagePicture, listLayers } from "./client";
import { client } from "./client/client.gen";

const model = "cifar-resnet";
const layer = "stage1.block2.relu";

async function main(url: string, photograph: string, folder: string): Promise<void> {
  client.setConfig({ baseUrl: url });
  const bytes = await readFile(photograph);
  const { data: list } = await listLayers({ path: { model }, throwOnError: true });

  // A photograph that is kept has URLs of its own, and is uploaded as it is.
  const { data: image } = await createImage({ body: new Blob([bytes]), throwOnError: true });
  const path = { image_id: image.id };
  const kept = await getImageFeatures({ path, query: { model, layers: [layer], format: "npy" }, throwOnError: true });
  await writeFile(`${folder}/kept.npy`, kept.data.stream());
  const picture = await getImagePicture({ path, query: { model, layer, colormap: "viridis" }, throwOnError: true });
  await writeFile(`${folder}/map.png`, picture.data.stream());

  // One that is not kept travels in the request.
  const body = { images: [bytes.toString("base64")] };
  const sent = await extractFeatures({ path: { model }, query: { layers: [layer], format: "npy" }, body, throwOnError: true });
  await writeFile(`${folder}/sent.npy`, sent.data.stream());

  const refused = await getImageFeatures({ path, query: { model, layers: ["stage1.block2.rellu"] } });
  const problem = refused.error;
  console.log(
    JSON.stringify({
      layers: list.layers.map((row) => row.name),
      problem: { status: problem?.status, code: problem?.code, suggestions: problem?.suggestions },
    }),
  );
}

const [url = "", photograph = "", folder = "."] = process.argv.slice(2);
void main(url, photograph, folder);
