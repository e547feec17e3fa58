#include <longview/longview.hpp>

int main() { return 0; }
