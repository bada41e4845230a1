// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// Boxes of a picture from an exported detection model, with ONNX Runtime and OpenCV.
// Usage: detect best.onnx picture.jpg boxes.jpg [_cpu.so, the operator library of docs/deploy.md]
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdio>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <stdexcept>
#include <string>
#include <vector>

struct Box {
  cv::Rect2f area;  // in pixels of the input
  float score;
  int kind;
};

// The model says a row of six a box, if NMS is in the file or the head needs none, else (4 + classes, anchors).
std::vector<Box> boxes_of(const float* out, int64_t rows, int64_t columns, float confidence = 0.25f, float overlap = 0.7f) {
  std::vector<Box> found, kept;
  const bool finished = columns == 6;
  for (int64_t i = 0; i < (finished ? rows : columns); ++i) {
    if (finished) {
      const float* b = out + 6 * i;
      if (b[4] > confidence) found.push_back({{b[0], b[1], b[2] - b[0], b[3] - b[1]}, b[4], (int)b[5]});
      continue;
    }
    int64_t best = 4;
    for (int64_t c = 5; c < rows; ++c)
      if (out[c * columns + i] > out[best * columns + i]) best = c;
    const float w = out[2 * columns + i], h = out[3 * columns + i], score = out[best * columns + i];
    if (score > confidence) found.push_back({{out[i] - w / 2, out[columns + i] - h / 2, w, h}, score, (int)(best - 4)});
  }
  std::stable_sort(found.begin(), found.end(), [](const Box& a, const Box& b) { return a.score > b.score; });
  if (finished) return found;
  for (const Box& b : found) {
    const bool seen = std::any_of(kept.begin(), kept.end(), [&](const Box& k) {
      const float both = (b.area & k.area).area();
      return k.kind == b.kind && both > overlap * (b.area.area() + k.area.area() - both);
    });
    if (!seen) kept.push_back(b);
  }
  return kept;
}

int main(int argc, char** argv) try {
  if (argc < 4 || argc > 5) throw std::runtime_error("usage: detect best.onnx picture.jpg boxes.jpg [_cpu.so]");
  Ort::Env env;
  Ort::SessionOptions options;
  if (argc == 5) options.RegisterCustomOpsLibrary(argv[4]);
  Ort::Session session(env, argv[1], options);
  const auto meta = session.GetModelMetadata();
  const auto said = [&](const char* key) {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto value = meta.LookupCustomMetadataMapAllocated(key, allocator);
    return std::string(value ? value.get() : "");
  };
  if (said("task") != "detect" || said("head") == "RTDETRDecoder" || said("channels") == "1")
    throw std::runtime_error(std::string(argv[1]) + " is no exported YOLO detection model for colour pictures");
  int exported[2] = {640, 640};
  std::sscanf(said("imgsz").c_str(), "[%d, %d]", &exported[0], &exported[1]);
  auto shape = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape();
  for (size_t i = 0; i < shape.size(); ++i)
    if (shape[i] < 1) shape[i] = i < 2 ? 1 : exported[i - 2];  // a dynamic file takes any size
  if (shape[0] != 1) throw std::runtime_error(std::string(argv[1]) + " takes several pictures at once: export with batch=1");
  cv::Mat image = cv::imread(argv[2]), small;
  if (image.empty()) throw std::runtime_error(std::string(argv[2]) + " is not there or is no picture");
  const int height = (int)shape[2], width = (int)shape[3];
  const float scale = std::min((float)height / image.rows, (float)width / image.cols);
  cv::resize(image, small, {std::max(1, cvRound(image.cols * scale)), std::max(1, cvRound(image.rows * scale))});
  const int top = (height - small.rows) / 2, left = (width - small.cols) / 2;
  std::vector<float> x(3 * (size_t)height * width, 114 / 255.f);
  for (int r = 0; r < small.rows; ++r)
    for (int c = 0; c < small.cols; ++c)
      for (int k = 0; k < 3; ++k)  // BGR to RGB
        x[((size_t)k * height + top + r) * width + left + c] = small.at<cv::Vec3b>(r, c)[2 - k] / 255.f;
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto input = Ort::Value::CreateTensor<float>(memory, x.data(), x.size(), shape.data(), shape.size());
  const char *in[] = {"images"}, *out[] = {"output0"};
  auto output = session.Run(Ort::RunOptions{}, in, &input, 1, out, 1);
  const auto sizes = output[0].GetTensorTypeAndShapeInfo().GetShape();
  for (const Box& b : boxes_of(output[0].GetTensorData<float>(), sizes[1], sizes[2])) {
    const cv::Point from(cvRound((b.area.x - left) / scale), cvRound((b.area.y - top) / scale));
    const cv::Point to(cvRound((b.area.br().x - left) / scale), cvRound((b.area.br().y - top) / scale));
    std::printf("class %d %.3f %d %d %d %d\n", b.kind, b.score, from.x, from.y, to.x, to.y);
    cv::rectangle(image, from, to, {0, 0, 255}, 2);
  }
  if (!cv::imwrite(argv[3], image)) throw std::runtime_error(std::string(argv[3]) + " cannot be written");
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "detect: %s\n", e.what());
  return 1;
}
