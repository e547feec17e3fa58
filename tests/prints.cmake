# cmake -DCOMMAND=... -DEXPECTED=FILE -P prints.cmake: the command must succeed and print exactly the file.
execute_process(COMMAND ${COMMAND} RESULT_VARIABLE status OUTPUT_VARIABLE printed)
file(READ ${EXPECTED} expected)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "ended with ${status}, having printed:\n${printed}")
elseif(NOT printed STREQUAL expected)
  message(FATAL_ERROR "printed:\n${printed}expected:\n${expected}")
endif()
