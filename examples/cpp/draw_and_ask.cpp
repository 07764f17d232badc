// Draws a picture into a PPM file and answers a question about it.
#include <iostream>
#include <mmada_lite.hpp>

int main(int count, char** words) try {
  if (count != 5) {
    std::cerr << "usage: draw_and_ask BUNDLE PROMPT FILE.ppm QUESTION\n";
    return 2;
  }
  const mmada_lite::Model model(words[1]);
  const auto drawing = model.paint(words[2], {}, 3, [](const mmada_lite::Step& step) {
    std::cerr << "step " << step.index + 1 << ": " << step.remaining << " codes to go\n";
    return true;
  });
  mmada_lite::write_ppm(words[3], drawing.picture);
  std::cout << model.ask(drawing.picture, words[4]).text << "\n";
} catch (const mmada_lite::Error& error) {
  std::cerr << "draw_and_ask: " << error.what() << "\n";
  return 2;
}
