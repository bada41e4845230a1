// Ultralytics 🚀 AGPL-3.0 License - https://ultralytics.com/license
// Calls one function of the library in a process of another system, on memory that comes from a file and goes back to it.
// Usage: foreign_call LIBRARY FUNCTION LEVEL FILE. The file: count of arguments, count of pieces, the arguments, and for
// each piece of memory its address in the caller, its size and its bytes, padded to eight. Without arguments it waits for
// the end of its input: wine, which starts a whole system for its first program, keeps that for the next ones.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#if defined(_WIN32)
#include <windows.h>
static void* open_library(const char* path) { return (void*)LoadLibraryA(path); }
static void* find(void* library, const char* name) { return (void*)GetProcAddress((HMODULE)library, name); }
#else
#include <dlfcn.h>
static void* open_library(const char* path) { return dlopen(path, RTLD_NOW); }
static void* find(void* library, const char* name) { return dlsym(library, name); }
#endif

struct Piece {
  int64_t address, size;
  char* here;
};

int main(int argc, char** argv) {
  if (argc == 1) {
    while (getchar() != EOF) {
    }
    return 0;
  }
  if (argc != 5) return 90;
  void* library = open_library(argv[1]);
  if (!library) return 91;
  auto set_isa = (int (*)(int))find(library, "vmamba_set_isa");
  auto isa_name = (const char* (*)())find(library, "vmamba_isa_name");
  auto compiler = (const char* (*)())find(library, "vmamba_compiler");
  auto function = (int (*)(const int64_t*, int64_t))find(library, argv[2]);
  if (!set_isa || !isa_name || !compiler || !function) return 92;
  if (set_isa(atoi(argv[3])) < 0) return 93;  // a level that this processor lacks

  FILE* file = fopen(argv[4], "rb");
  int64_t counts[2];
  if (!file || fread(counts, 8, 2, file) != 2) return 94;
  std::vector<int64_t> args((size_t)counts[0]);
  std::vector<Piece> pieces((size_t)counts[1]);
  if (fread(args.data(), 8, args.size(), file) != args.size()) return 94;
  for (auto& p : pieces) {
    if (fread(&p, 8, 2, file) != 2) return 94;
    const size_t padded = (size_t)(p.size + 7) / 8 * 8;
    p.here = (char*)malloc(padded + 64);
    if (fread(p.here, 1, padded, file) != padded) return 94;
  }
  fclose(file);
  const std::vector<int64_t> given = args;
  for (auto& a : args)
    for (auto& p : pieces)
      if (a >= p.address && a < p.address + p.size) {
        a = (int64_t)(intptr_t)(p.here + (a - p.address));
        break;
      }
  const int status = function(args.data(), (int64_t)args.size());
  file = fopen(argv[4], "wb");
  if (!file) return 95;
  for (auto& p : pieces) fwrite(p.here, 1, (size_t)(p.size + 7) / 8 * 8, file);
  fclose(file);
  printf("%d %s, built with %s\n", status, isa_name(), compiler());
  return 0;
}
