// The round trip with the typescript-fetch client of openapi-generator: URL PHOTOGRAPH FOLDER.
import { readFile, writeFile } from "node:fs/promises";
import {
  Configuration,
  FeatureMapsApi,
  ImagesApi,
  ModelsApi,
  ProblemFromJSON,
  ResponseError,
  type Problem,
} from "./client";

const model = "cifar-resnet";
const layer = "stage1.block2.relu";

async function main(basePath: string, photograph: string, folder: string): Promise<void> {
  const configuration = new Configuration({ basePath });
  const images = new ImagesApi(configuration);
  const body = new File([await readFile(photograph)], "photograph.jpg");
  const list = await new ModelsApi(configuration).listLayers({ model });
  const imageId = (await images.createImage({ body })).id;
  const kept = await images.getImageFeatures({ imageId, model, layers: [layer], format: "npy" });
  await writeFile(`${folder}/kept.npy`, kept.stream());
  const sent = await new FeatureMapsApi(configuration).extractFeatures({ model, body, layers: [layer], format: "npy" });
  await writeFile(`${folder}/sent.npy`, sent.stream());
  const picture = await images.getImagePicture({ imageId, model, layer, colormap: "viridis" });
  await writeFile(`${folder}/map.png`, picture.stream());

  let problem: Problem | undefined;
  try {
    await images.getImageFeatures({ imageId, model, layers: ["stage1.block2.rellu"] });
  } catch (error) {
    if (!(error instanceof ResponseError)) throw error;
    problem = ProblemFromJSON(await error.response.json());
  }
  console.log(
    JSON.stringify({
      layers: list.layers.map((row) => row.name),
      problem: { status: problem?.status, code: problem?.code, suggestions: problem?.suggestions },
    }),
  );
}

const [url = "", photograph = "", folder = "."] = process.argv.slice(2);
void main(url, photograph, folder);
