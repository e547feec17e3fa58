#include "everything.hpp"

float other();
float other() { return attended<float>(); }
